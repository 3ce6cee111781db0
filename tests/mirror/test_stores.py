"""Where a mirror can be, and what is said where it cannot."""

from typing import Any

import fsspec
import pytest

from tvf.errors import InputError
from tvf.mirror import check_mirror
from tvf.mirror.stores import ObjectStore


@pytest.mark.parametrize(
    "url, rule",
    [
        ("bucket/folder", "must be a URL, such as s3://BUCKET/FOLDER"),
        (3, "must be a URL"),
        ("sftp://host/folder", "must begin with s3://, gs://, file://"),
        ("memory://folder", "must begin with s3://, gs://, file://"),
        ("s3:///folder", "must name a bucket and a folder: s3://BUCKET/FOLDER"),
        ("s3://bucket", "must name a bucket and a folder"),
        ("gs://bucket/", "must name a bucket and a folder: gs://"),
        ("file://folder", "must name an absolute folder"),
        ("file:///", "must name an absolute folder"),
    ],
)
def test_a_mirror_must_name_a_folder_in_a_known_store(url: object, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        check_mirror(url)


def test_a_missing_library_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(InputError, match=r"needs s3fs, .* pip install 'tvf\[s3\]'"):
        ObjectStore("s3://bucket/folder")
    with pytest.raises(InputError, match=r"needs gcsfs, .* pip install gcsfs"):
        ObjectStore("gs://bucket/folder")
