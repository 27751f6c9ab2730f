import contextlib
import os
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from full_disk import full_disk
from servers import GCSServer, S3Server

from saejax.claim import claimed
from saejax.errors import InputError
from saejax.storage import Folder, Place, reference, referred


@pytest.fixture(params=["disk", "memory", "s3", "gcs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Return a folder that nobody has used, of each kind."""
    if request.param in ("s3", "gcs"):
        return f"{request.getfixturevalue(request.param).bucket()}/some/folder"
    return tmp_path / "a" / "b" if request.param == "disk" else f"memory://{uuid.uuid4()}/b"


def test_files_come_back_by_name(place: Place) -> None:
    folder = Folder(place)
    assert str(folder) == str(place)
    assert folder.read("a.json") is None
    assert folder.names() == []
    folder.write("a.json", b"1")
    (folder / "within").write("b", b"")
    folder.write("a.json", b"22")
    again = Folder(f"{place}/")
    assert again.names() == ["a.json", "within/b"]
    assert again.read("a.json") == b"22"
    assert again.read("within/b") == b""
    assert (again / "within").names() == ["b"]


def test_a_file_is_created_once(place: Place) -> None:
    folder = Folder(place)
    assert folder.create("a", b"1")
    assert not folder.create("a", b"2")
    assert folder.read("a") == b"1"


def test_a_file_becomes_what_its_content_says(place: Place) -> None:
    folder = Folder(place)
    assert folder.update("a", lambda present: b"1" if present is None else b"")
    assert folder.update("a", lambda present: (present or b"") + b"2")
    assert not folder.update("a", lambda _: None)
    assert not folder.update("b", lambda _: None)
    assert (folder.read("a"), folder.read("b")) == (b"12", None)


def test_what_another_writes_meanwhile_is_not_lost(place: Place) -> None:
    folder, seen = Folder(place), []

    def change(present: bytes | None) -> bytes:
        seen.append(present)
        if len(seen) < 3:
            Folder(place).write("a", b"theirs %d" % len(seen))
        return (present or b"") + b", ours"

    assert folder.update("a", change)
    assert seen == [None, b"theirs 1", b"theirs 2"]
    assert folder.read("a") == b"theirs 2, ours"


def test_a_file_that_another_made_meanwhile_is_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the write: the write itself must be refused."""
    folder = Folder(tmp_path)
    files = folder._files

    class Late:
        def read(self, name: str):
            found = files.read(name)
            found.result()
            files.write(name, b"theirs").result()
            return found

        def __getattr__(self, name: str):
            return getattr(files, name)

    monkeypatch.setattr(folder, "_files", Late())
    assert not folder.create("a", b"ours")
    assert Folder(tmp_path).read("a") == b"theirs"


@pytest.mark.parametrize("name", ["s3:/bucket/run", "gs:/bucket/run", "memory:/run"])
def test_a_bucket_that_went_through_a_path_is_named(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} has lost a slash, as paths do; give {name.replace(':/', '://')}"):
        Folder(Path(name))


def test_a_name_that_no_bucket_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"s3://B names no bucket .*; give s3://BUCKET/NAME"):
        Folder("s3://B")


def test_references_move_with_what_they_join(tmp_path: Path) -> None:
    assert reference(tmp_path / "store", tmp_path / "runs" / "sae") == "../../store"
    assert referred("../../store", tmp_path / "runs" / "sae") == (tmp_path / "store").resolve()
    bucket = "s3://bucket/store"
    assert referred(reference(bucket, tmp_path), tmp_path) == bucket


def test_a_bucket_without_permission_is_named(s3: S3Server) -> None:
    folder = Folder(f"{s3.bucket()}/run")
    folder.write("a", b"1")
    with s3.locked():
        for act, message in (
            (lambda: folder.read("a"), r"/run/a cannot be read: .*; get the right to it, or other credentials"),
            (lambda: folder.write("b", b""), "/run/b cannot be written: .*; get the right to it"),
            (folder.names, "/run cannot be listed: .*; get the right to it"),
        ):
            with pytest.raises(InputError, match=message) as refusal:
                act()
            assert "\n" not in str(refusal.value)
    assert folder.read("a") == b"1"


@pytest.mark.parametrize(
    ("told", "remedy"),
    [
        ("ExpiredToken: The provided token has expired. [http_response_code='400']", "get the right to it, or other"),
        ('UNAVAILABLE: Error reading "c/403/0": Service Unavailable', "see to it"),
    ],
)
def test_the_remedy_is_for_what_went_wrong(told: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"a cannot be read: .*; {remedy}"), Folder(tmp_path).explained("a", "read"):
        raise ValueError(told)


def test_a_bucket_that_does_not_exist_is_named(s3: S3Server) -> None:
    with pytest.raises(InputError, match=r"s3://nobodys-bucket/run/a cannot be written: .*make the bucket"):
        Folder("s3://nobodys-bucket/run").write("a", b"")


def test_a_bucket_of_google_that_does_not_exist_is_named(gcs: GCSServer) -> None:
    with pytest.raises(InputError, match=r"gs://nobodys-bucket/run/a cannot be written: .*; make the bucket"):
        Folder("gs://nobodys-bucket/run").write("a", b"")


def test_a_full_disk_is_named_and_what_was_written_stays(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("a", b"1")
    message = r"/a cannot be written: .*; free space and run the command again"
    with full_disk(1000), pytest.raises(InputError, match=message):
        folder.write("a", bytes(5000))
    assert folder.read("a") == b"1"


def test_a_second_writer_on_a_disk_is_refused(tmp_path: Path) -> None:
    script = f"""
from saejax.claim import claimed
from saejax.storage import Folder
with claimed(Folder({str(tmp_path)!r}), 0, 2):
    print("claimed", flush=True)
    input()
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    other = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "claimed\n"
    with (
        pytest.raises(InputError, match=f"{tmp_path} is being written by another process"),
        claimed(Folder(tmp_path), 0, 2),
    ):
        pass
    with claimed(Folder(tmp_path), 1, 2) as still_ours:  # another part is another claim
        still_ours()
    other.kill()
    other.wait()
    with claimed(Folder(tmp_path)) as still_ours:  # the claim of a killed process is nobody's
        still_ours()


def test_writers_of_another_number_of_parts_are_refused(tmp_path: Path) -> None:
    """Part 0 of 1 has the rows of part 1 of 3."""
    folder = Folder(tmp_path)

    def refused(part: int, parts: int, writing: int) -> None:
        message = f"{tmp_path} is being written by one process of {writing}, and this is one of {parts}; wait until"
        with pytest.raises(InputError, match=message), claimed(folder, part, parts):
            pass

    with claimed(folder, 1, 3):
        refused(0, 1, writing=3)
        refused(2, 12, writing=3)
        with claimed(folder, 0, 3), claimed(folder, 2, 3):
            refused(3, 4, writing=3)
    with claimed(folder):
        refused(1, 3, writing=1)


def test_writers_that_come_together_do_not_take_each_other_for_what_they_are_not(tmp_path: Path) -> None:
    """Each looks at the claims of the others, of which some are of a run that has ended."""
    folder, parts = Folder(tmp_path), 8
    with contextlib.ExitStack() as ended:
        for part in range(2 * parts):
            ended.enter_context(claimed(folder, part, 2 * parts))
    together = threading.Barrier(parts)

    def claim(part: int) -> None:
        for _ in range(20):
            together.wait(10)
            with claimed(folder, part, parts):
                together.wait(10)

    with ThreadPoolExecutor(parts) as threads:
        for _ in threads.map(claim, range(parts)):
            pass


def test_the_last_writer_in_a_bucket_takes_over(s3: S3Server) -> None:
    place = f"{s3.bucket()}/run"
    with claimed(Folder(place), 0) as first:
        first()
        with claimed(Folder(place), 0) as second:
            second()
            with pytest.raises(InputError, match=f"{place} was taken over by another process"):
                first()
            second()


def test_in_a_bucket_a_writer_of_another_number_of_parts_takes_over(s3: S3Server) -> None:
    place = f"{s3.bucket()}/run"
    with claimed(Folder(place)) as alone, claimed(Folder(place), 1, 3) as one, claimed(Folder(place), 2, 3) as other:
        one()
        other()
        with pytest.raises(InputError, match=f"{place} was taken over by another process"):
            alone()
