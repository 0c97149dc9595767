"""Compiling the native kernels: where it cannot be done there is a reason, and never half a file."""

import concurrent.futures
import shutil

import pytest

from kernels.native import build

HERE = build.reason()


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Forgets the loaded library before and after."""
    build.library.cache_clear()
    yield
    monkeypatch.undo()
    build.library.cache_clear()


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Makes a script the compiler, and an empty folder the cache; returns the folder of the compiled kernels."""

    def make(body):
        script = tmp_path / "cxx"
        script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo test 1.0 && exit 0\n{body}\n')
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return tmp_path / "cache" / "isoquant"

    return make


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent")
    assert build.reason() == "there is no C++ compiler (/nonexistent)"
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    build.library.cache_clear()
    assert build.reason() == "there is no C++ compiler (no-such-compiler)"


def test_switched_off(monkeypatch):
    monkeypatch.setenv("ISOQUANT_NATIVE", "0")
    assert "ISOQUANT_NATIVE=0" in build.reason()
    with pytest.raises(build.Unavailable):
        build.library()


def test_a_compiler_that_fails_says_why_and_leaves_nothing(compiler):
    folder = compiler('echo "forward.cpp:1: error: boom" >&2; exit 1')
    assert build.reason().endswith("does not compile the kernels (forward.cpp:1: error: boom)")
    assert list(folder.iterdir()) == []


def test_a_compiler_that_hangs_is_given_up(compiler, monkeypatch):
    monkeypatch.setattr(build, "TIMEOUT_S", 0.2)
    folder = compiler("exec sleep 20")
    assert "could not be compiled" in build.reason()
    assert list(folder.iterdir()) == []


def test_a_result_that_does_not_load(compiler):
    compiler('while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"')
    assert "do not load" in build.reason()


def test_a_cache_folder_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert "could not be compiled" in build.reason()


def test_no_home_folder(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(build.Path, "home", no_home)
    assert build.reason() is not None


@pytest.mark.skipif(HERE is not None, reason=f"no native kernels: {HERE}")
def test_several_processes_may_compile_at_once(compiler):
    """Each compiler takes a while over a real library; whoever comes last replaces one whole file by another."""
    real = build.library()._name
    folder = compiler(
        f'while [ "$1" != -o ]; do shift; done; head -c 1000 {real} > "$2"; sleep 0.3; tail -c +1001 {real} >> "$2"'
    )
    command = [build._compiler(), "x"]
    path = folder / "native-x.so"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        made = [pool.submit(build._compile, command, path) for _ in range(4)]
        for one in made:
            one.result()
            assert path.read_bytes() == build.Path(real).read_bytes()
    assert [p.name for p in folder.iterdir()] == ["native-x.so"]
    build.library.cache_clear()
    shutil.move(path, folder / f"native-{build._key(build._command())}.so")
    assert build.library()._name.startswith(str(folder)), "compiled once, loaded from then on"


def test_another_source_compiler_flag_or_processor_is_another_file(compiler, monkeypatch, tmp_path):
    compiler("exit 0")
    source = tmp_path / "other.cpp"
    source.write_text("int x;")
    command = build._command()
    keys = {build._key(command), build._key([*command, "-g"])}
    with monkeypatch.context() as patch:
        patch.setattr(build, "SOURCE", source)
        keys.add(build._key(command))
    with monkeypatch.context() as patch:
        patch.setattr(build, "_processor", lambda: "flags: none")
        keys.add(build._key(command))
    (tmp_path / "cxx").write_text("#!/bin/sh\necho test 2.0\n")
    keys.add(build._key(command))
    assert len(keys) == 5
