"""Every reader, on damaged and invented files: values, or one printable line of bounded length in bounded time."""

import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.args import Config, parse_args
from src.errors import UserError
from src.files import write_text
from src.launcher.rank_table import read_rank_table
from src.weights.names import without_wrappers
from tests.fuzzing import KINDS, NAMES, targets

MUTATIONS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.floats(0, 1), st.integers(0, (1 << 62) - 1)), min_size=1, max_size=6
)
quick = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return targets(tmp_path_factory.mktemp("right"))


def test_right_files_are_read(readers, tmp_path):
    assert set(readers) <= set(NAMES)
    refused = [
        (name, message)
        for name, target in readers.items()
        for message in [target.attempt(seed, tmp_path) for seed in target.seeds]
        if message
    ]
    # The seed with sparse and meta tensors is no right file, nor are two of another network's weights.
    assert {name for name, _ in refused} <= {"PyTorch"}, refused


@pytest.mark.parametrize("name", NAMES)
@quick
@given(mutations=MUTATIONS, seed=st.integers(0, 10**7))
def test_a_damaged_file_is_values_or_one_line(readers, name, tmp_path_factory, mutations, seed):
    if name not in readers:
        pytest.skip("needs PyTorch")
    target = readers[name]
    target.attempt(target.damaged(mutations, seed), tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("name", NAMES)
@quick
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bytes_of_no_meaning_are_one_line(readers, name, tmp_path_factory, content):
    if name in readers:
        readers[name].attempt(content, tmp_path_factory.getbasetemp())


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
NESTED = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEY = st.sampled_from(
    ["server_list", "server_count", "status", "server_id", "device", "device_id", "device_ip", "rank_id"]
)
TABLES = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=5), max_leaves=20
)


@quick
@given(table=TABLES)
def test_any_json_as_a_rank_table_is_one_line(tmp_path_factory, table):
    path = tmp_path_factory.getbasetemp() / "table.json"
    write_text(path, json.dumps({"server_list": [{"server_id": "a", "device": table}, table]}))
    with pytest.raises(UserError) as raised:
        read_rank_table(str(path))
    assert str(raised.value).isprintable()


@quick
@given(values=st.dictionaries(st.sampled_from(list(Config.model_fields)), NESTED, max_size=4))
def test_any_values_of_keys_are_taken_or_one_line_that_names_one_of_them(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "values.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    try:
        config, _ = parse_args(["--ddr_config", str(path)])
    except UserError as error:
        message = str(error)
        assert message.isprintable()
        assert "not valid YAML" in message or any(name in message for name in values)
    else:
        again = parse_args(
            [f"--{name}={value}" for name, value in config.model_dump().items() if not isinstance(value, tuple)]
        )[0]
        assert again.model_copy(update={"scale": config.scale, "ratio": config.ratio, "beta": config.beta}) == config


WORD = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=6)


@quick
@given(
    prefix=st.lists(st.sampled_from(["module", "_orig_mod", "model", "net", "network", "backbone"]), max_size=5),
    own=WORD,
)
def test_any_mixture_of_wrappers_is_taken_off_and_the_names_stay(prefix, own):
    names = ["conv1.0.weight", "layer1.0.bn1.running_mean", "linear.bias"]
    for words in (prefix, [own], [own, *prefix]):
        before = "".join(f"{word}." for word in words)
        assert without_wrappers([before + name for name in names]) == {before + name: name for name in names}
