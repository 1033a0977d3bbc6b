"""Stand-ins for CANN's libraries, with which MindSpore's own Ascend code runs on a machine without a card.

MindSpore's wheel holds its whole Ascend plugin, linked with libraries that only CANN has. This writes libraries of the
same names, in which nearly every function returns 0: what the plugin needs and nobody has is read from the installed
wheel (nm, objdump), so each version gets its own. What must do more than return 0 stands in cann.c and ge.cc.

Nothing is computed and no operator is compiled; collectives do carry data between the ranks of a machine. What runs is
MindSpore: choice of backend, start of ranks, front end, shape inference, kernel selection.

python -m tests.ascend.stubs.make --out DIR      # prints the environment that uses them
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLS = ("gcc", "g++", "nm", "objdump")
# Where the search for Ascend libraries starts, below mindspore/lib. Others join as these need them.
ROOTS = (
    "plugin/libmindspore_ascend.so*",
    "plugin/libmindspore_ops_ascend.so*",
    "plugin/ascend/lib*collective.so",
    "plugin/ascend/libmindspore_ascend_res_manager.so",
    "plugin/ascend/libmindspore_graph_ir.so",
    "plugin/ascend/libhccl_plugin.so",
    "libmindspore_ge_backend.so",
)
# Not CANN's: MindSpore's own plugins, packages that MindSpore does without, the system.
OTHERS = re.compile(r"libmindspore_|libatb|liblcal|liblowlatency|libmpi|libaio|libgmem|libcrypto|libssl|_c_")
# Names that MindSpore looks up with dlsym stand as text in its libraries; these are CANN's.
LOOKED_UP = re.compile(rb"(?<=\0)(?:acl[a-z]*[A-Z]|Hccl|Hcom|hal[A-Z]|(?:Un)?Init(?:HugeMem|PTA)|ReleaseHuge)\w+(?=\0)")
# The compilers that the plugin and the stubs agree on: MindSpore's wheels have the old C++ ABI.
COMPILERS = {".c": ["gcc"], ".cc": ["g++", "-std=c++17", "-D_GLIBCXX_USE_CXX11_ABI=0"]}
CANN_VERSION = "8.2.0"  # one that every MindSpore from 2.7.0 to 2.10 lists


def mindspore_folder() -> Path:
    """Where this interpreter's MindSpore stands, which is not imported."""
    spec = importlib.util.find_spec("mindspore")
    if spec is None or spec.origin is None:
        raise SystemExit("error: this Python has no mindspore")
    return Path(spec.origin).parent


def why_not() -> str:
    """Why the stubs cannot be made here; '' where they can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"no {', '.join(missing)} here"
    if not list((mindspore_folder() / "lib/plugin").glob("libmindspore_ascend.so*")):
        return "this MindSpore has no Ascend plugin; its wheels for Linux have one"
    return ""


def make(out: Path) -> dict[str, str]:
    """Compile the stubs into a folder.

    Returns:
        The environment that uses them; LD_LIBRARY_PATH and PYTHONPATH are to be put before what is there.
    """
    names, libraries = _survey(mindspore_folder())
    lib = out / "cann/lib64"
    lib.mkdir(parents=True)
    objects, by_hand = [], set()
    for source in (HERE / "cann.c", HERE / "ge.cc", out / "rest.c"):
        if source.parent == out:
            source.write_text("static char room[4096];\n" + "".join(map(_stub, sorted(names - by_hand))))
        objects.append(str(out / f"{source.stem}.o"))
        command = [*COMPILERS[source.suffix], "-fPIC", "-O1", "-w", "-fno-builtin", "-c", source, "-o", objects[-1]]
        subprocess.run(command, check=True)
        by_hand |= set(re.findall(r" [A-TV-Z] (\w+)$", _output("nm", objects[-1]), re.MULTILINE))
    subprocess.run(["g++", "-shared", "-Wl,-soname,libstub.so", *objects, "-o", lib / "libstub.so"], check=True)
    for name in libraries:
        (lib / name).symlink_to("libstub.so")
    for folder in ("opp", "opp_kernel"):  # MindSpore 2.7 insists on the second
        (out / "cann" / folder).mkdir()
    (out / "cann/latest").symlink_to(".")  # MindSpore 2.7 wants "latest" in the path of CANN, later ones "cann"
    # What MindSpore imports of CANN's Python packages; it does without the other, te.
    wheel = out / "python/hccl"
    wheel.mkdir(parents=True)
    (wheel / "__init__.py").touch()
    (wheel / "sys_version.py").write_text(f'__sys_version__ = "{CANN_VERSION}"\n')
    tbe = out / "cann/opp/built-in/op_impl/ai_core/tbe"  # MindSpore warns where PYTHONPATH lacks this text
    return {
        "ASCEND_HOME_PATH": str(out / "cann"),
        "ASCEND_OPP_PATH": str(out / "cann/opp"),
        "LD_LIBRARY_PATH": str(out / "cann/latest/lib64"),
        "PYTHONPATH": f"{out / 'python'}:{tbe}",
    }


def _output(*command: str) -> str:
    """What a command prints; nothing where it fails, as nm does on another processor's library."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _symbols(library: Path) -> tuple[set[str], set[str]]:
    """The names that a library defines, and those that it needs from others."""
    pairs = [line.split()[-2:] for line in _output("nm", "-D", str(library)).splitlines()]
    needed = {name.split("@")[0] for kind, name in pairs if kind == "U"}
    return {name.split("@")[0] for kind, name in pairs if kind not in "Uvw"}, needed


def _survey(package: Path) -> tuple[set[str], set[str]]:
    """What MindSpore's Ascend libraries use and nobody has: names of symbols, and of libraries."""
    own = {path.name: path for path in [*package.glob("lib/**/*.so*"), *package.glob("*.so")]}
    pending = [path for pattern in ROOTS for path in package.glob(f"lib/{pattern}") if "lowlatency" not in path.name]
    ascend: set[Path] = set()
    defined: set[str] = set()
    needed: set[str] = set()
    libraries: set[str] = set()
    while pending:  # also the libraries of the package that those are linked with
        path = pending.pop()
        if path in ascend:
            continue
        ascend.add(path)
        has, lacks = _symbols(path)
        defined |= has
        needed |= lacks
        for name in re.findall(r"NEEDED\s+(\S+)", _output("objdump", "-p", str(path))):
            system = _output("gcc", f"-print-file-name={name}").strip()
            if name in own:
                pending.append(own[name])
            elif system != name:
                defined |= _symbols(Path(system))[0]
            elif not OTHERS.match(name):
                libraries.add(name)
        if "ascend" in str(path.relative_to(package)) or path.match("*ge_backend*"):
            symbols, names = _looked_up(path.read_bytes())
            needed |= symbols
            libraries |= {name for name in names - set(own) if not OTHERS.match(name)}
    for path in package.glob("*.so"):
        defined |= _symbols(path)[0]
    return {name for name in needed - defined if not name.startswith(("Py", "_Py"))}, libraries


def _looked_up(content: bytes) -> tuple[set[str], set[str]]:
    """The symbols and libraries that a library looks up by name while it runs."""
    symbols = {name.decode() for name in LOOKED_UP.findall(content)}
    symbols |= {name[2:] for name in symbols if name.startswith("UnInit")}  # the linker keeps one text for both
    symbols |= {f"{name}GetWorkspaceSize" for name in symbols if name.startswith("aclnn")}
    return symbols, {name.decode() for name in re.findall(rb"(?:lib64/|\0)(lib\w+\.so)(?=\0)", content)}


def _stub(name: str) -> str:
    """C for a symbol that is merely there."""
    if name.startswith(("_ZTV", "_ZTI", "_ZTS")):  # a class's tables
        return f"char {name}[256];\n"
    if re.match(r"_ZN2ge(5Shape|10TensorDesc|6Tensor|5Graph)C[12]E", name):  # a pointer to nothing
        return f"void {name}(long *self) {{ self[0] = self[1] = 0; }}\n"
    if name.startswith("_ZN2ge8Operator"):  # gives itself back
        return f"void *{name}(void *self) {{ return self; }}\n"
    if re.match(r"acl(?!nn|rtCreate)\w*(Create|Dataset(Buffer|TensorDesc)$)", name):
        return f"void *{name}(void) {{ return room; }}\n"
    return f"long {name}(void) {{ return 0; }}\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to write; must not be there")
    reason = why_not()
    if reason:
        raise SystemExit(f"error: {reason}")
    for variable, value in make(parser.parse_args().out.resolve()).items():
        rest = f"${{{variable}:+:${variable}}}" if variable in ("LD_LIBRARY_PATH", "PYTHONPATH") else ""
        print(f'export {variable}="{value}{rest}"')
