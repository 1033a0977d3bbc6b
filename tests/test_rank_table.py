"""Rank tables: written, joined, checked; a wrong one names its entry and nothing starts."""

import copy
import json
import os
import re
import sys

import pytest

from scripts.make_rank_table import parse_range
from src.errors import UserError
from src.launcher.rank_table import find_server, read_rank_table
from tests.processes import ROOT, finished

SCRIPT = ROOT / "scripts/make_rank_table.py"


def table(*servers: str, cards: int = 2) -> dict:
    """A right table of these servers, each with so many cards."""
    rank, entries = 0, []
    for number, server in enumerate(servers):
        devices = []
        for card in range(cards):
            devices.append({"device_id": str(card), "device_ip": f"192.168.{number}.{card + 1}", "rank_id": str(rank)})
            rank += 1
        entries.append({"server_id": server, "device": devices, "host_nic_ip": "reserve"})
    return {"version": "1.0", "server_count": str(len(servers)), "server_list": entries, "status": "completed"}


def written(folder, content) -> str:
    path = folder / "table.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def conf(folder, cards: int = 8, network: str = "192.168.100"):
    path = folder / "hccn.conf"
    lines = [f"address_{card}={network}.{100 + card}\nnetmask_{card}=255.255.255.0" for card in range(cards)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_server_s_table_has_its_cards_addresses_and_ranks_from_0(tmp_path):
    run = finished(
        [sys.executable, SCRIPT, "--device_num", "[2,5)", "--conf", conf(tmp_path), "--server_id", "10.0.0.1"], tmp_path
    )
    assert run.returncode == 0, run.stdout
    assert json.loads((tmp_path / "rank_table_3pcs.json").read_text()) == {
        "version": "1.0",
        "server_count": "1",
        "server_list": [
            {
                "server_id": "10.0.0.1",
                "device": [
                    {"device_id": "2", "device_ip": "192.168.100.102", "rank_id": "0"},
                    {"device_id": "3", "device_ip": "192.168.100.103", "rank_id": "1"},
                    {"device_id": "4", "device_ip": "192.168.100.104", "rank_id": "2"},
                ],
                "host_nic_ip": "reserve",
            }
        ],
        "status": "completed",
    }


def test_merged_tables_count_their_ranks_on_and_pass_the_check(tmp_path):
    for name, server, network in (("a", "10.0.0.1", "192.168.1"), ("b", "10.0.0.2", "192.168.2")):
        command = [sys.executable, SCRIPT, "--device_num", "[0,8)", "--server_id", server, "--out", f"{name}.json"]
        assert finished([*command, "--conf", conf(tmp_path, network=network)], tmp_path).returncode == 0
    run = finished([sys.executable, SCRIPT, "--merge", "a.json", "b.json", "--out", "both.json"], tmp_path)
    assert run.returncode == 0, run.stdout
    both = read_rank_table(str(tmp_path / "both.json"))
    assert [[card.rank for card in server.cards] for server in both.servers] == [list(range(8)), list(range(8, 16))]
    assert both.servers[1].cards[3].device_ip == "192.168.2.103"
    run = finished([sys.executable, SCRIPT, "--check", "both.json"], tmp_path)
    assert (run.returncode, "16 ranks (10.0.0.1: 8, 10.0.0.2: 8)" in run.stdout) == (0, True)


def test_a_table_cannot_be_merged_with_itself(tmp_path):
    path = written(tmp_path, table("10.0.0.1"))
    run = finished([sys.executable, SCRIPT, "--merge", path, path], tmp_path)
    assert run.returncode == 2
    assert "server_id 10.0.0.1 stands there twice" in run.stdout


@pytest.mark.parametrize("text", ["8", "[0,8]", "[4,4)", "[5,2)", "[-1,2)"])
def test_a_range_of_cards_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=r"--device_num .*such as \"\[0,8\)\""):
        parse_range(text)


def test_a_card_without_an_address_is_named(tmp_path):
    run = finished([sys.executable, SCRIPT, "--device_num", "[0,8)", "--conf", conf(tmp_path, cards=6)], tmp_path)
    assert (run.returncode, "address_6" in run.stdout) == (2, True), run.stdout
    run = finished([sys.executable, SCRIPT, "--device_num", "[0,8)", "--conf", tmp_path / "none.conf"], tmp_path)
    assert (run.returncode, "none.conf: cannot be read" in run.stdout) == (2, True), run.stdout


def with_tool(folder, script: str) -> dict[str, str]:
    """The environment with a stand-in for the driver's hccn_tool."""
    tool = folder / "bin/hccn_tool"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return {"PATH": f"{tool.parent}:{os.environ['PATH']}"}


def test_addresses_that_hccn_conf_lacks_are_asked_of_hccn_tool(tmp_path):
    script = """[ "$1 $3 $4" = "-i -ip -g" ] && printf 'ipaddr:10.20.0.%s\\nnetmask:255.255.255.0\\n' "$2\""""
    tool = with_tool(tmp_path, script)
    make = [sys.executable, SCRIPT, "--device_num", "[4,8)", "--server_id", "10.0.0.1", "--conf"]
    for name, own in ((tmp_path / "none.conf", 0), (conf(tmp_path, cards=6), 2)):
        run = finished([*make, name], tmp_path, **tool)
        assert run.returncode == 0, run.stdout
        [server] = read_rank_table(str(tmp_path / "rank_table_4pcs.json")).servers
        expected = [f"192.168.100.{100 + card}" if card < 4 + own else f"10.20.0.{card}" for card in range(4, 8)]
        assert [card.device_ip for card in server.cards] == expected


@pytest.mark.parametrize("script", ["exit 3", "echo ipaddr:10.0.0.1; exit 1", "echo nothing", "echo ipaddr:x"])
def test_a_tool_that_knows_no_address_is_an_error_that_says_so(tmp_path, script):
    command = [sys.executable, SCRIPT, "--device_num", "[0,2)", "--conf", "none", "--server_id", "10.0.0.1"]
    run = finished(command, tmp_path, **with_tool(tmp_path, script))
    assert (run.returncode, run.stdout.count("\n"), "hccn_tool" in run.stdout) == (2, 1, True), run.stdout


@pytest.mark.parametrize(
    ("cards", "told"),
    [
        ("[3,6)", "lie in both groups of four"),
        ("[0,3)", "3 cards; HCCL there takes 1, 2, 4 or 8"),
        ("[4,8)", ""),
        ("[0,8)", ""),
        ("[0,16)", ""),
    ],
)
def test_a_range_of_cards_that_a_910_server_forbids_is_told(tmp_path, cards, told):
    run = finished(
        [sys.executable, SCRIPT, "--device_num", cards, "--conf", conf(tmp_path, 16), "--server_id", "10.0.0.1"],
        tmp_path,
    )
    assert run.returncode == 0
    assert ("warning: server 10.0.0.1" in run.stdout, told in run.stdout) == (bool(told), True), run.stdout


def test_fields_that_are_not_known_stay_when_tables_are_merged(tmp_path):
    """As in tables of version 1.2, with super pods."""
    for number in range(2):
        content = table(f"10.0.{number}.1")
        content["version"] = "1.2"
        content["server_list"][0]["pod_ip"] = f"10.1.0.{number}"
        content["server_list"][0]["host_nic_ip"] = f"10.2.0.{number}"
        for card, device in enumerate(content["server_list"][0]["device"]):
            device["device_ip"] = f"192.168.{number}.{card + 1}"
            device["super_device_id"] = str(100 * number + card)
        content["super_pod_list"] = [{"super_pod_id": "0", "server_list": [{"server_id": f"10.0.{number}.1"}]}]
        content["super_pod_list"] += [{"super_pod_id": str(7 + number), "server_list": []}]
        content["cluster_list"] = [number]
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    run = finished([sys.executable, SCRIPT, "--merge", "0.json", "1.json", "--out", "both.json"], tmp_path)
    assert run.returncode == 0, run.stdout
    both = json.loads((tmp_path / "both.json").read_text())
    assert both["version"] == "1.2"
    assert [server["pod_ip"] for server in both["server_list"]] == ["10.1.0.0", "10.1.0.1"]
    assert [server["host_nic_ip"] for server in both["server_list"]] == ["10.2.0.0", "10.2.0.1"]
    devices = [device for server in both["server_list"] for device in server["device"]]
    assert [device["super_device_id"] for device in devices] == ["0", "1", "100", "101"]
    assert [device["rank_id"] for device in devices] == ["0", "1", "2", "3"]
    assert both["super_pod_list"] == [
        {"super_pod_id": "0", "server_list": [{"server_id": "10.0.0.1"}, {"server_id": "10.0.1.1"}]},
        {"super_pod_id": "7", "server_list": []},
        {"super_pod_id": "8", "server_list": []},
    ]
    assert both["cluster_list"] == [0, 1]


def test_tables_that_differ_where_they_must_be_alike_are_not_merged(tmp_path):
    for number, version in enumerate(("1.0", "1.2")):
        content = {**table(f"10.0.{number}.1"), "version": version}
        content["server_list"][0]["device"] = [{"device_id": "0", "device_ip": f"10.3.0.{number}", "rank_id": "0"}]
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    run = finished([sys.executable, SCRIPT, "--merge", "0.json", "1.json"], tmp_path)
    assert (run.returncode, "--merge: the tables differ in version" in run.stdout) == (2, True), run.stdout


def changed(*path_and_value) -> dict:
    """A right table of two servers with one value changed."""
    *path, last, value = path_and_value
    result = copy.deepcopy(table("10.0.0.1", "10.0.0.2"))
    holder = result
    for name in path:
        holder = holder[name]
    holder[last] = value
    return result


WRONG = {
    "no JSON": ('{"version": "1.0",', "line 1: not valid JSON"),
    "no object": ("[]", "server_list must be a list"),
    "version 2.0": (
        {"status": "completed", "version": "2.0", "rank_count": 1, "rank_list": [{"rank_id": 0, "device_id": 0}]},
        "is of version 2.0, whose rank_list does not say which card is on which server; start without it",
    ),
    "no servers": (changed("server_list", []), "server_list must be a list of at least one entry"),
    "not completed": (changed("status", "initializing"), "status is 'initializing'"),
    "wrong count": (changed("server_count", "3"), "server_count is 3, but server_list has 2"),
    "count no number": (changed("server_count", "two"), "server_count is 'two'"),
    "no name": (changed("server_list", 0, "server_id", ""), "server_list[0]: server_id is ''"),
    "same server": (changed("server_list", 1, "server_id", "10.0.0.1"), "server_id 10.0.0.1 stands there twice"),
    "no cards": (changed("server_list", 1, "device", []), "server_list[1]: device must be a list"),
    "same rank": (changed("server_list", 1, "device", 0, "rank_id", "1"), "rank_id 1 stands there twice"),
    "gap": (changed("server_list", 1, "device", 1, "rank_id", "4"), "rank_id is 4, but the table has 4 ranks"),
    "rank no number": (changed("server_list", 0, "device", 0, "rank_id", "-1"), "device[0]: rank_id is '-1'"),
    "same card": (changed("server_list", 0, "device", 1, "device_id", "0"), "device_id 0 stands there twice"),
    "same address": (
        changed("server_list", 1, "device", 1, "device_ip", "192.168.0.1"),
        "device_ip 192.168.0.1 stands there twice",
    ),
    "no address": (
        changed("server_list", 1, "device", 1, "device_ip", "192.168.0.300"),
        "server_list[1].device[1].device_ip is '192.168.0.300'",
    ),
    "address missing": (changed("server_list", 0, "device", 0, "device_ip", None), "device_ip is None"),
    "host_ip a number": (changed("server_list", 0, "host_ip", 7), "server_list[0].host_ip is 7; must be an IP"),
    "host_ip an object": (changed("server_list", 0, "host_ip", {}), "server_list[0].host_ip is {}; must be an IP"),
    "host_ip none": (changed("server_list", 0, "host_ip", "300.1.1.1"), "host_ip is '300.1.1.1'; must be an IP"),
    "a line in a name": (changed("server_list", 0, "server_id", "a\nb"), "server_id is 'a\\nb'; must be"),
    "a line in an address": (changed("server_list", 0, "device", 0, "device_ip", "fe80::1%a\nb"), "%a\\nb'; must be"),
    "long card": (changed("server_list", 0, "device", 0, "device_id", "9" * 30), "must be a number from 0 to 99999"),
    "other digits": (changed("server_list", 0, "device", 0, "device_id", "\u0663"), "must be a number from 0"),
    "true": (changed("server_list", 0, "device", 0, "device_id", True), "device_id is True; must be a number"),
    "one point": (changed("server_list", 0, "device", 0, "device_id", 1.0), "device_id is 1.0; must be a number"),
    "5000 digits": ('{"server_count": ' + "9" * 5000 + "}", "a number of 5000 digits"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "nested name": (changed("server_list", 0, "server_id", [[[[]]]]), "server_id is [[[[]]]]; must be"),
    "long": (changed("status", "x" * 100_000), "status is 'xxx"),
    "not a number": ('{"server_list": NaN}', "NaN is no number"),
    "card no object": (changed("server_list", 0, "device", 0, 7), "device[0]: must be an object"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_table_is_refused_by_an_error_that_names_the_entry(tmp_path, name):
    content, message = WRONG[name]
    with pytest.raises(UserError) as raised:
        read_rank_table(written(tmp_path, content))
    assert message in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < len(str(tmp_path)) + 300


def groups(*instances: tuple[str, list[str]], ranks: tuple[str, ...] = ()) -> dict:
    """A table of template 2: instances of some cards each, in groups; older ones name the rank of each instance.

    https://www.hiascend.com/document/detail/en/TensorFlowCommercial/800/migration/tfmigr2/tfmigr2_000031.html
    """
    entries = []
    for place, (server, cards) in enumerate(instances):
        devices = [{"device_id": card, "device_ip": f"192.168.{place}.{card}"} for card in cards]
        own = {"rank_id": ranks[place]} if ranks else {}
        entries.append({"pod_name": f"job-{place}", "server_id": server, "devices": devices, **own})
    group = {"group_name": "job", "device_count": "9", "instance_count": str(len(entries)), "instance_list": entries}
    return {"status": "completed", "group_count": "1", "group_list": [group]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (groups(("10.0.0.1", ["4"])), [("10.0.0.1", [(0, 4)])]),
        (
            groups(("10.0.0.1", ["0", "1"]), ("10.0.0.2", ["6", "7"])),
            [("10.0.0.1", [(0, 0), (1, 1)]), ("10.0.0.2", [(2, 6), (3, 7)])],
        ),
        (
            groups(("10.0.0.1", ["0"]), ("10.0.0.1", ["1"]), ("10.0.0.2", ["0"]), ranks=("2", "1", "0")),
            [("10.0.0.2", [(0, 0)]), ("10.0.0.1", [(1, 1), (2, 0)])],
        ),
    ],
)
def test_a_table_in_groups_of_instances_is_read_as_one_of_servers(tmp_path, content, expected):
    for _ in range(2):  # the second time as it is written again
        read = read_rank_table(written(tmp_path, content))
        got = [(server.server_id, [(card.rank, card.device_id) for card in server.cards]) for server in read.servers]
        assert got == expected
        content = read.to_json()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"group_list": [{}]}, "group_list[0]: instance_list must be a list"),
        ({"group_list": [{"instance_list": [7]}]}, "group_list[0].instance_list[0]: devices must be a list"),
        ({"group_list": [{"instance_list": [{"devices": [7]}]}]}, "instance_list[0]: devices must be objects"),
        ({"group_list": [{"instance_list": [{"devices": [{}]}]}]}, "instance_list[0]: server_id is None"),
        (groups(("10.0.0.1", ["0"]), ("10.0.0.1", ["0"])), "device_id 0 stands there twice"),
        ({**groups(("10.0.0.1", ["0"])), "status": "initializing"}, "status is 'initializing'"),
    ],
)
def test_a_wrong_table_in_groups_is_refused_by_an_error_that_names_the_entry(tmp_path, content, message):
    with pytest.raises(UserError, match=re.escape(message)):
        read_rank_table(written(tmp_path, content))


@pytest.mark.parametrize("name", ["container_ip", "pod_ip", "server_ip"])
def test_a_container_is_found_and_reached_by_its_own_address(tmp_path, name):
    """MindCluster's tables name the machine in server_id."""
    content = table("192.0.2.7", "192.0.2.8")
    for number, server in enumerate(content["server_list"]):
        server[name] = ("127.0.0.1", "192.0.2.9")[number]
    found = find_server(read_rank_table(written(tmp_path, content)))
    assert (found.server_id, found.reached_by) == ("192.0.2.7", "127.0.0.1")


@pytest.mark.parametrize("address", ["", None, 7, "pod-0"])
def test_what_is_no_address_reaches_no_container(tmp_path, address):
    content = table("192.0.2.7")
    content["server_list"][0]["container_ip"] = address
    assert read_rank_table(written(tmp_path, content)).servers[0].reached_by == "192.0.2.7"


def test_a_missing_table_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"rank table .*nowhere\.json: cannot be read"):
        read_rank_table(str(tmp_path / "nowhere.json"))


def test_servers_stand_in_the_order_of_their_ranks(tmp_path):
    content = table("10.0.0.1", "10.0.0.2")
    content["server_list"].reverse()
    assert [server.server_id for server in read_rank_table(written(tmp_path, content)).servers] == [
        "10.0.0.1",
        "10.0.0.2",
    ]


def test_this_server_is_found_by_its_address_or_by_the_name_given(tmp_path):
    right = read_rank_table(written(tmp_path, table("192.0.2.7", "127.0.0.1")))
    assert find_server(right).server_id == "127.0.0.1"
    assert find_server(right, "192.0.2.7").server_id == "192.0.2.7"


@pytest.mark.parametrize(
    ("servers", "server_id", "message"),
    [
        (("192.0.2.7",), "", "none of its servers is this one"),
        (("192.0.2.7", "192.0.2.8"), "", "none of its servers is this one"),
        (("127.0.0.1", "127.0.0.2"), "", "several of its servers are"),
        (("192.0.2.7",), "10.0.0.9", "no server 10.0.0.9"),
    ],
)
def test_a_table_without_this_server_is_refused(tmp_path, servers, server_id, message):
    with pytest.raises(UserError, match=message):
        find_server(read_rank_table(written(tmp_path, table(*servers))), server_id)


def test_a_single_server_may_have_a_name_instead_of_an_address(tmp_path):
    assert find_server(read_rank_table(written(tmp_path, table("node_0")))).server_id == "node_0"
