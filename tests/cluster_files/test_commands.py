"""Commands, flags and paths in documents and cluster files exist."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from visao_ray.core.settings import CommandSettings, parse
from visao_ray.jobs.registry import JOBS

_ROOT = Path(__file__).parents[2]
_FILES = sorted(
    path.relative_to(_ROOT).as_posix()
    for path in (
        *_ROOT.glob("*.md"),
        _ROOT / "Makefile",
        _ROOT / ".dockerignore",
        *(_ROOT / "docs").rglob("*.md"),
        *(_ROOT / "cluster").iterdir(),
    )
    if path.suffix not in (".json", ".png")
)
_JOBS = {verb: job.settings.variant((), {}) for verb, job in JOBS.items()}
#: Settings of all actions of a job, or of the job if it has no actions.
_SETTINGS = {verb: [*kind.by_action().values()] or [kind] for verb, kind in _JOBS.items()}
#: Where a command ends within its line: a comment, code's end, another command.
_END = re.compile(r"\s#|`|&&|\||;|$", re.M)


def _flags_of(kind: type[CommandSettings]) -> set[str]:
    """The flags of a job's settings."""
    names = [field.alias or name for name, field in kind.model_fields.items()]
    return {"--" + name.replace("_", "-") for name in names}


def _text(name: str) -> str:
    """Return the text of a file with continued lines joined; of YAML its strings and comments."""
    text = (_ROOT / name).read_text()
    if name.endswith(".yaml"):
        comments = re.findall(r"#\s.*", text)
        text = "\n".join([*_strings(list(yaml.safe_load_all(text))), *comments])
    return re.sub(r"\\\n\s*", " ", text)


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        yield from _strings(list(content.values()))
    elif isinstance(content, list):
        for part in content:
            yield from _strings(part)


def _commands(start: str) -> Iterator[tuple[str, str]]:
    """Yield (file, command) for every command with that start."""
    for name in _FILES:
        text = _text(name)
        for found in re.finditer(start, text):
            end = _END.search(text, found.end())
            assert end
            yield name, found.group() + text[found.end() : end.start()]


def _words(command: str) -> list[str]:
    return [word.strip("…,.)") for word in shlex.split(command.replace("…", " … "))]


def _flags(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if re.match(r"--[a-z]", word)]


_JOB_COMMANDS = sorted(set(_commands(r"python jobs/\w+\.py|\bvisao-ray [a-z]\w+")))
_RAY_COMMANDS = sorted(
    set(_commands(r"\bray (?:start|up|down|dashboard|job submit|get-auth-token)\b"))
)


def test_commands_are_found() -> None:
    """Otherwise the tests below would pass without any command."""
    assert len({name for name, _ in _JOB_COMMANDS}) >= 4
    assert sum("jobs/pipeline.py" in command for _, command in _JOB_COMMANDS) >= 4
    assert any(name.endswith("rayjob.yaml") and "--out" in text for name, text in _JOB_COMMANDS)
    assert any(
        name.endswith("aws.yaml") and "--autoscaling-config" in text for name, text in _RAY_COMMANDS
    )


def _verbs(words: list[str]) -> Iterator[int]:
    """Yield the positions of names of jobs."""
    return (position for position, word in enumerate(words) if word in _JOBS)


@cache
def _submit_flags() -> set[str]:
    command = [sys.executable, "jobs/submit.py", "--help"]
    run = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True, timeout=60)
    return set(re.findall(r"--[a-z][a-z-]*", run.stdout))


@pytest.mark.parametrize(("name", "command"), _JOB_COMMANDS)
def test_jobs_and_their_flags_exist(name: str, command: str) -> None:
    _, script, *rest = _words(command)
    job = Path(script).stem
    if job in ("VERB", "X"):
        return
    assert (_ROOT / "jobs" / f"{job}.py").is_file(), f"{name}: {script}"
    if job == "submit":
        own = [rest.pop(0) for _ in range(next(iter(_verbs(rest)), len(rest)))]
        assert set(_flags(own)) <= _submit_flags(), name
        if not rest:
            return
        job = rest.pop(0)
    kind = _JOBS[job].by_action().get(rest[0] if rest else "", _JOBS[job])
    known = _flags_of(kind)
    unknown = set(_flags(rest)) - known - {"--settings", "--resume", "--help"}
    assert not unknown, f"{name}: jobs/{job}.py has no {', '.join(sorted(unknown))}"
    if rest and not any(word in ("", "…") or word.endswith(".toml") for word in rest):
        parse(kind, [word for word in rest if word != "--help"])  # values fit too


@pytest.mark.parametrize(
    "name", [name for name in _FILES if name.endswith(".md") and name != "CHANGELOG.md"]
)
def test_flags_that_stand_alone_belong_to_a_job(name: str) -> None:
    known = {flag for kinds in _SETTINGS.values() for kind in kinds for flag in _flags_of(kind)}
    named = set(re.findall(r"`(--[a-z][a-z0-9-]*)", (_ROOT / name).read_text()))
    assert named <= known | {"--settings", "--resume", "--help", "--address"}


@cache
def _ray() -> Any:
    from ray.scripts.scripts import cli

    return cli


@pytest.mark.parametrize(("name", "command"), _RAY_COMMANDS)
def test_flags_of_ray_exist(name: str, command: str) -> None:
    words = _words(command.split(" -- ")[0])[1:]
    found = _ray()
    while words and words[0] in getattr(found, "commands", {}):
        found = found.commands[words.pop(0)]
    known = {option for parameter in found.params for option in parameter.opts}
    assert set(_flags(words)) <= known, name


@pytest.mark.parametrize("file", ["rayjob.yaml", "raycluster.yaml"])
def test_parameters_that_kuberay_passes_to_ray_exist(file: str) -> None:
    known = {option for parameter in _ray().commands["start"].params for option in parameter.opts}
    found = re.findall(
        r"^ +(num-\w+):|\{(object-[\w-]+):", (_ROOT / "cluster" / file).read_text(), re.M
    )
    names = {"--" + (one or other) for one, other in found}
    assert {"--num-cpus", "--num-gpus", "--object-spilling-directory"} <= names
    assert names <= known


@pytest.mark.parametrize("name", _FILES)
def test_paths_exist(name: str) -> None:
    folders = r"(?:cluster|docs|examples|jobs|visao_ray|tests)"
    named = re.findall(rf"(?<![\w/.])({folders}/[\w./-]+\.\w+)", (_ROOT / name).read_text())
    links = re.findall(r"\]\(([\w./-]+)\)", (_ROOT / name).read_text())
    named += [
        ((_ROOT / name).parent / link).resolve().relative_to(_ROOT).as_posix() for link in links
    ]
    known = [path for path in named if not re.search("VERB|NAME", path)]
    missing = [path for path in known if not (_ROOT / path).exists()]
    assert not missing


def test_one_image_in_all_files() -> None:
    names = {
        image
        for name in _FILES
        for image in re.findall(r"registry\.example\.com/[\w./:-]+", (_ROOT / name).read_text())
    }
    assert len(names) == 1


#: Patterns of keys, tokens and passwords.
_SECRET = re.compile(
    r"AKIA[0-9A-Z]{12,}|ASIA[0-9A-Z]{12,}|-----BEGIN|ghp_\w{20,}"
    r"|(?i:secret|token|password|key)[\w-]*[\"']?\s*[:=]\s*[\"']?(?=[\w/+-]*\d)[\w/+-]{16,}"
)


@pytest.mark.parametrize("name", _FILES)
def test_no_file_contains_a_secret(name: str) -> None:
    assert not _SECRET.findall((_ROOT / name).read_text())


@pytest.mark.parametrize(
    "line",
    [
        "AWS_SECRET_ACCESS_KEY: wJalrXUtnFEMI0K7MDENGbPxRfiCYEXAMPLEKEY",
        "RAY_AUTH_TOKEN=3f2a9c1e7b604d5f8a1b2c3d4e5f6071",
        "aws_access_key_id: AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_a_secret_would_be_found(line: str) -> None:
    assert _SECRET.search(line)
