"""Zoos to the hub and back, against a hub of our own."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from pathlib import Path

import polars as pl
import pytest
import torch

import zoarium as za
from zoarium._core.errors import DamagedError, HubError, MissingExtraError, StoreError
from zoarium.zoo import Zoo
from zoarium.zoo.hub import push as push_module

WEIGHTS = 4  # files of the small zoo


def said(zoo: Zoo) -> dict[str, object]:
    """Tables and weights of a zoo as plain values."""
    tables = {name: zoo.store.table(name).to_dicts() for name in sorted(zoo.store.table_names)}
    weights = {
        (row["id"], row["epoch"]): {k: v.tolist() for k, v in zoo[row["id"]].state_dict(row["epoch"]).items()}
        for row in zoo.checkpoints.iter_rows(named=True)
    }
    return {"tables": tables, "weights": weights, "info": zoo.info}


# ---------------------------------------------------------------------- there and back


def test_a_pulled_zoo_says_what_the_pushed_one_said(hub, small, tmp_path):
    pushed = small.push_to_hub("me/zoo", private=True)
    assert pushed.uploaded == len(small.store.manifest.files) + 2  # zoo.json and the card
    assert pushed.url == f"{hub.url}/datasets/me/zoo"
    pulled = Zoo.from_hub("me/zoo", tmp_path / "pulled", weights=True)
    assert said(pulled) == said(small)
    assert set(pulled.check()["state"]) == {"ok"}
    assert pulled.base_data("tiny").fingerprint == small.base_data("tiny").fingerprint
    assert (pulled.origin.repo_id, pulled.origin.revision) == ("me/zoo", pushed.revision)
    assert said(za.open(tmp_path / "pulled")) == said(small)
    assert hub.dataset().private
    assert small.origin is None


def test_files_that_zoo_json_does_not_list_are_not_pushed(hub, small):
    (small.path / "weights" / "left@1.safetensors").write_bytes(b"left over")
    (small.path / "notes.txt").write_text("mine")
    small.push_to_hub("me/zoo")
    assert set(hub.dataset().files()) == {*small.store.manifest.files, "zoo.json", "README.md", ".gitattributes"}


def test_a_push_that_changes_nothing_makes_no_commit_and_uploads_nothing(hub, small):
    first = small.push_to_hub("me/zoo")
    hub.requests.clear()
    again = small.push_to_hub("me/zoo")
    assert (again.uploaded, again.uploaded_bytes, again.revision) == (0, 0, first.revision)
    assert not hub.asked("PUT|/commit/|preupload")
    assert "nothing had changed" in str(again)


def test_only_what_changed_is_uploaded_again_and_what_is_gone_is_removed(hub, small):
    small.push_to_hub("me/zoo")
    before = len(hub.uploads)
    with small.writing() as transaction:
        transaction.replace("checkpoints", small.checkpoints.filter(pl.col("epoch") == 2))
    pushed = small.push_to_hub("me/zoo")
    files = hub.dataset().files()
    assert pushed.uploaded == 3  # checkpoints, zoo.json, card
    assert len(hub.uploads) == before + 1
    assert sorted(name for name in files if name.startswith("weights/")) == [
        "weights/w2@2.safetensors", "weights/w3@2.safetensors",
    ]  # fmt: skip


def test_files_of_others_in_the_repository_are_left_alone(hub, small):
    hub.add("me/zoo", {"figures/a.txt": b"theirs"})
    small.push_to_hub("me/zoo")
    assert hub.dataset().files()["figures/a.txt"] == b"theirs"


def test_a_view_pushes_its_own_models_only(hub, small, tmp_path):
    small.where(width=3)[:2].push_to_hub("me/zoo")
    pulled = Zoo.from_hub("me/zoo", tmp_path / "pulled", weights=True)
    assert pulled.ids == ["mlp-w3-s0", "mlp-w3-s1"]
    mine, theirs = pulled["mlp-w3-s1"].state_dict(), small["mlp-w3-s1"].state_dict()
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    assert not any("w2@" in name for name in hub.dataset().files())


def test_a_branch_and_a_pull_request_leave_main_as_it_was(hub, small, monkeypatch):
    monkeypatch.setattr(push_module, "COMMIT_FILES", 2)
    small.push_to_hub("me/zoo", revision="draft", commit_message="First try")
    assert "zoo.json" in hub.dataset().files("draft")
    assert set(hub.dataset().files()) == {".gitattributes"}
    pushed = small.push_to_hub("me/zoo", create_pr=True)
    assert pushed.pull_request == f"{hub.url}/datasets/me/zoo/discussions/1"
    assert set(hub.dataset().files()) == {".gitattributes"}
    assert "zoo.json" in hub.dataset().files("refs/pr/1")
    assert "refs/pr/2" not in hub.dataset().branches  # several commits, one request
    assert hub.dataset().messages[1:4] == ["First try: weights", "First try: weights", "First try: weights"]


def test_a_zoo_written_by_another_process_is_pushed_as_it_is_now(hub, small, tmp_path):
    other = za.open(small.path)
    with other.writing() as transaction:
        transaction.set_models(other.table.with_columns(status=pl.lit("diverged")))
    small.push_to_hub("me/zoo")
    assert set(Zoo.from_hub("me/zoo", tmp_path / "pulled").table["status"]) == {"diverged"}


# ---------------------------------------------------------------------- cut off


def test_every_commit_of_a_push_in_several_is_a_whole_zoo(hub, small, monkeypatch, tmp_path):
    monkeypatch.setattr(push_module, "COMMIT_FILES", 2)
    small.push_to_hub("me/zoo")
    with small.writing() as transaction:
        params = {"fc1.weight": torch.zeros(3, 2, 4)}
        for epoch in (3, 4, 5):
            transaction.add_weights("w2", epoch, 0, ["mlp-w2-s0", "mlp-w2-s1", "mlp-w2-s2"], params)
    small.push_to_hub("me/zoo")
    repo = hub.dataset()
    assert len(repo.commits) == 1 + 4 + 3
    whole = 0
    for n, sha in enumerate(repo.commits):
        if "zoo.json" in repo.files(sha):
            pulled = Zoo.from_hub("me/zoo", tmp_path / str(n), revision=sha, weights=True)
            assert set(pulled.check()["state"]) == {"ok"}
            whole += 1
    assert whole == 4  # before the last commit of the first push there is no zoo.json at all


def test_a_push_that_was_cut_off_goes_on_without_uploading_anything_twice(hub, small, monkeypatch):
    monkeypatch.setattr(push_module, "COMMIT_FILES", 2)
    third = hashlib.sha256((small.path / "weights" / "w3@1.safetensors").read_bytes()).hexdigest()
    hub.fault(f"PUT /storage/{third}", cut_after=100, times=99)
    with pytest.raises(HubError, match=r"cannot push to 'me/zoo': the hub cannot be reached.*goes on where it stopped"):
        small.push_to_hub("me/zoo")
    assert "zoo.json" not in hub.dataset().files()
    done = len(hub.uploads)
    assert done >= 2
    hub.faults.clear()
    small.push_to_hub("me/zoo")
    assert sorted(hub.uploads) == sorted(info.size for info in small.store.manifest.files.values())


def test_a_line_cut_in_the_middle_of_an_upload_is_tried_again(hub, small):
    hub.fault("PUT /storage/", cut_after=64, times=2)
    small.push_to_hub("me/zoo")
    assert "zoo.json" in hub.dataset().files()


def test_large_files_go_in_parts(hub, small, tmp_path):
    hub.part_size = 200
    small.push_to_hub("me/zoo")
    assert len(hub.asked(r"PUT /storage/\w+/2$")) >= WEIGHTS
    assert said(Zoo.from_hub("me/zoo", tmp_path / "pulled", weights=True)) == said(small)


def test_a_download_cut_in_the_middle_goes_on_from_there(hub, small, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    small.push_to_hub("me/zoo")
    hub.fault("GET /storage/", cut_after=300)
    pulled = Zoo.from_hub("me/zoo", tmp_path / "pulled", weights=True)
    assert hub.asked("GET /storage/.* bytes=300-")
    assert said(pulled) == said(small)


def test_a_pull_that_was_cut_off_is_no_zoo_and_goes_on_without_downloading_anything_twice(hub, small, tmp_path):
    small.push_to_hub("me/zoo")
    oid = small.store.manifest.files["measures/norm.parquet"].sha256
    hub.fault(f"GET /storage/{oid}", status=500, times=99)
    with pytest.raises(HubError, match=r"cannot download measures/norm\.parquet of 'me/zoo': the hub is in trouble"):
        Zoo.from_hub("me/zoo", tmp_path / "pulled")
    with pytest.raises(StoreError, match=r"has no zoo\.json"):
        za.open(tmp_path / "pulled")
    hub.faults.clear()
    pulled = Zoo.from_hub("me/zoo", tmp_path / "pulled", weights=True)
    assert said(pulled) == said(small)
    whole = [name for name in hub.asked("GET /storage/") if oid not in name]
    assert len(whole) == len(set(whole))
    assert not list((tmp_path / "pulled").rglob("*.tmp"))


# ---------------------------------------------------------------------- tables first


def test_weights_come_when_they_are_needed_and_only_those(hub, small):
    small.push_to_hub("me/zoo")
    hub.requests.clear()
    pulled = Zoo.from_hub("me/zoo")
    wanted = {small.store.manifest.files[f"{name}.parquet"].sha256 for name in small.store.table_names}
    assert {request.split("/")[-1] for request in hub.asked("GET /storage")} == wanted
    assert not (pulled.path / "weights").exists()
    hub.requests.clear()
    assert torch.equal(pulled["mlp-w2-s1"].state_dict()["out.bias"], small["mlp-w2-s1"].state_dict()["out.bias"])
    oid = small.store.manifest.files["weights/w2@2.safetensors"].sha256
    assert hub.asked("GET /storage") == [f"GET /storage/{oid}"]
    reopened = za.open(pulled.path)  # another day
    assert len(reopened["mlp-w3-s0"].state_dict(1)) == 4


def test_download_fetches_the_weights_of_a_view_at_an_epoch(hub, small):
    small.push_to_hub("me/zoo")
    pulled = Zoo.from_hub("me/zoo")
    noted = []
    pulled.where(width=3).download(epoch=1, on_progress=lambda done, total, note: noted.append((done, total, note)))
    assert [path.name for path in (pulled.path / "weights").iterdir()] == ["w3@1.safetensors"]
    assert noted[-1][0] == noted[-1][1] > 0
    hub.requests.clear()
    pulled.where(width=3).download(epoch=1)
    assert not hub.requests
    with pytest.raises(StoreError, match="no weights of epoch 9 are stored; there are epochs: 1, 2"):
        pulled.download(epoch=9)
    with pytest.raises(HubError, match="was not pulled from the hub"):
        small.download()


def test_a_check_downloads_nothing_and_a_repair_gives_nothing_up(hub, small):
    small.push_to_hub("me/zoo")
    pulled = Zoo.from_hub("me/zoo")
    hub.requests.clear()
    report = pulled.check(repair=True)
    assert not hub.requests
    assert set(report["state"]) == {"ok"}
    assert report.filter(pl.col("file").str.starts_with("weights/"))["detail"].unique().to_list() == [
        "on the hub, not downloaded yet"
    ]
    assert len(pulled.checkpoints) == len(small.checkpoints)


def test_a_pulled_zoo_can_be_written_and_never_reuses_a_name_of_weights_still_on_the_hub(hub, small):
    small.push_to_hub("me/zoo")
    pulled = Zoo.from_hub("me/zoo")
    ids = ["mlp-w2-s0", "mlp-w2-s1", "mlp-w2-s2"]
    with pulled.writing() as transaction:
        new = transaction.add_weights("w2", 2, 0, ids, {"other": torch.ones(3, 1)})
        transaction.upsert("checkpoints", pulled.checkpoints.filter(pl.col("id") == ids[0]), key=["id", "epoch"])
    assert new.name == "weights/w2~2@2.safetensors"
    assert list(pulled[ids[1]].state_dict()) == ["other"]
    assert torch.equal(pulled[ids[0]].state_dict()["out.bias"], small[ids[0]].state_dict()["out.bias"])


def test_a_pulled_zoo_with_new_values_goes_back_without_its_weights_coming_down(hub, small, tmp_path):
    small.push_to_hub("me/zoo")
    pulled = Zoo.from_hub("me/zoo", tmp_path / "pulled")
    with pulled.writing() as transaction:
        transaction.update_header(note="mine")
    assert pulled.push_to_hub("me/zoo").uploaded == 1
    assert not (pulled.path / "weights").exists()
    assert Zoo.from_hub("me/zoo", tmp_path / "again").info["note"] == "mine"
    pulled.push_to_hub("me/copy")  # needs them: they come
    assert said(Zoo.from_hub("me/copy", tmp_path / "copy", weights=True))["weights"] == said(small)["weights"]


def test_a_pulled_zoo_is_measured_by_several_workers_while_its_weights_come(hub, small_zoo, tmp_path):
    small_zoo.push_to_hub("me/zoo")
    pulled = Zoo.from_hub("me/zoo", tmp_path / "pulled")
    assert not (pulled.path / "weights").exists()
    theirs, ours = (zoo.measure("performance", workers=2).values("test_loss") for zoo in (pulled, small_zoo))
    assert theirs.drop("seconds").sort("id").equals(ours.drop("seconds").sort("id"))
    assert set(za.open(pulled.path).check()["state"]) == {"ok"}


def test_pulling_into_no_folder_gives_the_same_zoo_again_with_what_was_measured(hub, small):
    small.push_to_hub("me/zoo")
    with Zoo.from_hub("me/zoo").writing() as transaction:
        transaction.update_header(note="mine")
    assert Zoo.from_hub("me/zoo").info["note"] == "mine"


def test_a_pulled_zoo_stays_at_its_commit(hub, small, tmp_path):
    old = small.push_to_hub("me/zoo").revision
    pulled = Zoo.from_hub("me/zoo", tmp_path / "old")
    with small.writing() as transaction:
        transaction.set_models(small.table.head(1))
    small.push_to_hub("me/zoo")
    assert len(pulled["mlp-w3-s2"].state_dict()) == 4
    assert len(Zoo.from_hub("me/zoo", tmp_path / "new")) == 1
    assert len(Zoo.from_hub("me/zoo", tmp_path / "again", revision=old)) == 6
    with pytest.raises(StoreError, match=rf"holds 'me/zoo' at {old[:8]}; choose another folder, or give revision="):
        Zoo.from_hub("me/zoo", tmp_path / "old")


def test_without_a_network_the_cache_is_enough(hub, small, tmp_path, monkeypatch):
    small.push_to_hub("me/zoo")
    Zoo.from_hub("me/zoo", tmp_path / "one", weights=True)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert said(Zoo.from_hub("me/zoo", tmp_path / "two", weights=True)) == said(small)
    assert not hub.requests


def test_a_pull_takes_disk_space_once_and_a_write_leaves_the_cache_alone(hub, small, tmp_path):
    small.push_to_hub("me/zoo")
    pulled = Zoo.from_hub("me/zoo", tmp_path / "pulled", weights=True)
    assert (pulled.path / "weights" / "w2@1.safetensors").stat().st_nlink == 2
    with pulled.writing() as transaction:
        transaction.set_models(pulled.table.head(1))
    assert len(Zoo.from_hub("me/zoo", tmp_path / "second")) == 6


def test_a_pulled_zoo_goes_to_other_processes(hub, small):
    small.push_to_hub("me/zoo")
    copy = pickle.loads(pickle.dumps(Zoo.from_hub("me/zoo").where(width=2)))
    assert copy["mlp-w2-s0"].state_dict().keys() == small["mlp-w2-s0"].state_dict().keys()


def test_neither_token_nor_address_is_kept_in_the_folder(hub, small, tmp_path):
    small.push_to_hub("me/zoo", private=True)
    os.environ.pop("HF_TOKEN")
    pulled = Zoo.from_hub("me/zoo", tmp_path / "pulled", token="hf_secret")
    assert len(pulled["mlp-w2-s0"].state_dict()) == 4  # the object remembers
    text = (tmp_path / "pulled" / "hub.json").read_text()
    assert "hf_secret" not in text
    assert "127.0.0.1" not in text


# ---------------------------------------------------------------------- errors


def test_nothing_damaged_is_pushed(hub, small):
    path = small.path / "weights" / "w2@1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"w2@1\.safetensors is not what was written"):
        small.push_to_hub("me/zoo")
    assert "zoo.json" not in hub.dataset().files()


@pytest.mark.parametrize("name", ["weights/w3@2.safetensors", "models.parquet"])
def test_a_file_that_differs_from_zoo_json_on_the_hub_never_becomes_part_of_the_zoo(hub, small, tmp_path, name):
    small.push_to_hub("me/zoo")
    repo = hub.dataset()
    files = repo.commits[repo.branches["main"]]
    content = bytearray(files[name][1])
    content[-20] ^= 1
    files[name] = (True, bytes(content))
    hub.storage[hashlib.sha256(content).hexdigest()] = bytes(content)
    with pytest.raises(
        DamagedError, match=rf"{re.escape(name)} of 'me/zoo' at \w{{8}} is not what its zoo\.json lists"
    ):
        Zoo.from_hub("me/zoo", tmp_path / "pulled", weights=True)
    assert not (tmp_path / "pulled" / name).exists()


def test_a_file_that_rotted_in_the_cache_is_downloaded_anew(hub, small, tmp_path):
    small.push_to_hub("me/zoo")
    Zoo.from_hub("me/zoo", tmp_path / "one", weights=True)
    oid = small.store.manifest.files["weights/w3@2.safetensors"].sha256
    blob = next(Path(tmp_path / "hub-cache").rglob(f"blobs/{oid}"))
    blob.unlink()
    blob.write_bytes(b"\0" * 100)
    assert said(Zoo.from_hub("me/zoo", tmp_path / "two", weights=True)) == said(small)


def test_a_damaged_zoo_json_is_named_and_dropped_from_the_cache(hub, small, tmp_path):
    small.push_to_hub("me/zoo")
    repo = hub.dataset()
    files = repo.commits[repo.branches["main"]]
    whole = files["zoo.json"]
    files["zoo.json"] = (False, whole[1].replace(b"norm", b"form"))
    with pytest.raises(DamagedError, match=r"zoo\.json of 'me/zoo' at \w{8} is not what was written"):
        Zoo.from_hub("me/zoo", tmp_path / "pulled")
    files["zoo.json"] = whole
    assert len(Zoo.from_hub("me/zoo", tmp_path / "pulled")) == 6


def test_what_is_no_zoo_is_told_apart(hub, small, tmp_path):
    hub.add("me/table", {"data.csv": b"a,b"})
    hub.add("me/model", {"config.json": b"{}"}, kind="model")
    hub.add("me/gated", {"zoo.json": b"{}"}, gated=True)
    hub.add("me/secret", {"zoo.json": b"{}"}, private=True)
    os.environ["HF_TOKEN"] = "hf_wrong"
    for repo_id, message in {
        "me/table": r"'me/table' is no zoo: it has no zoo\.json; give a data set",
        "me/model": "'me/model' is a model on the hub, not a data set",
        "me/gated": "cannot pull 'me/gated': it is gated; ask for access.*hf auth login",
        "me/secret": "cannot pull 'me/secret': the hub has no such data set, or not for you.*hf auth login",
        "me/nothing": "cannot pull 'me/nothing': the hub has no such data set",
        "not a name": "'not a name' is no name of a repository on the hub; write it as owner/name",
    }.items():
        with pytest.raises(HubError, match=message):
            Zoo.from_hub(repo_id, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    os.environ["HF_TOKEN"] = "hf_secret"
    small.push_to_hub("me/zoo")
    with pytest.raises(HubError, match="has no revision 'never'; give a branch, a tag or a commit"):
        Zoo.from_hub("me/zoo", revision="never")


def test_a_folder_that_holds_something_else_is_refused(hub, small, tmp_path):
    small.push_to_hub("me/zoo")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"cannot pull into .*full: it is not empty"):
        Zoo.from_hub("me/zoo", tmp_path / "full")
    (tmp_path / "full" / "hub.json").write_text('{"repo_id": "../x", "revision": "0"}')
    with pytest.raises(StoreError, match=r"hub\.json does not say where the zoo came from: repo_id"):
        Zoo.from_hub("me/zoo", tmp_path / "full")


def test_a_hub_that_cannot_be_reached_is_one_sentence(hub, small, tmp_path, monkeypatch):
    from huggingface_hub.utils import close_session

    small.push_to_hub("me/zoo")
    hub.close()
    with pytest.raises(HubError, match="cannot push to 'me/zoo': the hub cannot be reached"):
        small.push_to_hub("me/zoo")
    with pytest.raises(HubError, match="cannot pull 'me/zoo': the hub cannot be reached"):
        Zoo.from_hub("me/zoo", tmp_path / "pulled")
    close_session()  # so that a new connection is refused, not an old one closed
    with pytest.raises(HubError, match="the hub cannot be reached and it is not in the cache; check the network"):
        Zoo.from_hub("me/zoo", tmp_path / "pulled")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="not in the cache and HF_HUB_OFFLINE is set"):
        Zoo.from_hub("me/zoo", tmp_path / "pulled")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "the hub does not know your token; log in with: hf auth login"),
        (403, "your token does not allow it"),
        (412, "somebody else has changed it meanwhile"),
        (429, "the hub has had too many requests from you"),
        (503, "the hub is in trouble .HTTP 503.; wait a little, then run the same again"),
        (418, "the hub refuses .HTTP 418: ordered 418"),
    ],
)
def test_a_refused_push_says_why_and_what_to_do(hub, small, status, message):
    small.push_to_hub("me/zoo")
    with small.writing() as transaction:
        transaction.update_header(note="new")
    hub.fault("POST .*/commit/", status=status, times=99)
    with pytest.raises(HubError, match=f"cannot push to 'me/zoo': {message}"):
        small.push_to_hub("me/zoo")


def test_who_is_not_logged_in_is_told_how(hub, small, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="the hub does not know your token; log in with: hf auth login"):
        small.push_to_hub("me/zoo")
    with pytest.raises(HubError, match="you are not logged in to the hub"):
        small.push_to_hub("me/zoo", token=True)


def test_two_pushes_at_once_do_not_mix(hub, small, monkeypatch):
    small.push_to_hub("me/zoo")
    with small.writing() as transaction:
        transaction.update_header(note="new")
    run = push_module._Push.run

    def overtaken(self, snapshot):
        repo = hub.dataset()
        repo.commit("main", {**repo.commits[repo.branches["main"]], "x": (False, b"x")}, "somebody else")
        return run(self, snapshot)

    monkeypatch.setattr(push_module._Push, "run", overtaken)
    with pytest.raises(HubError, match="somebody else has changed it meanwhile; run the same again"):
        small.push_to_hub("me/zoo")


def test_a_public_data_set_does_not_take_what_should_be_private(hub, small):
    hub.add("me/zoo", {"a.txt": b"a"})
    with pytest.raises(HubError, match=r"'me/zoo' is public already.*Nothing was uploaded"):
        small.push_to_hub("me/zoo", private=True)
    assert not hub.uploads


def test_arguments_that_make_no_sense_are_refused_before_anything_is_sent(hub, small):
    with pytest.raises(HubError, match="license 'CC BY: 4' is not written as the hub does"):
        small.push_to_hub("me/zoo", license="CC BY: 4")
    with pytest.raises(HubError, match="a pull request is made from the main branch"):
        small.push_to_hub("me/zoo", create_pr=True, revision="draft")
    with pytest.raises(HubError, match=r"cannot read the card 'no\.md'"):
        small.push_to_hub("me/zoo", card="no.md")
    assert not hub.requests
    with pytest.raises(HubError, match=r'refuses the header of the card .*"license" must be one of'):
        small.push_to_hub("me/zoo", license="nonsense")


def test_a_missing_extra_names_the_install_line(small, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    for call in (lambda: small.push_to_hub("me/zoo"), lambda: Zoo.from_hub("me/zoo")):
        with pytest.raises(MissingExtraError, match=r"pip install 'zoarium\[hub\]'"):
            call()


# ---------------------------------------------------------------------- the card there


def test_the_card_replaces_its_elder_but_not_one_written_by_hand(hub, small, tmp_path):
    small.push_to_hub("me/zoo", license="mit")
    assert b"license: mit" in hub.dataset().files()["README.md"]
    small.push_to_hub("me/zoo")
    assert b"license: cc-by-4.0" in hub.dataset().files()["README.md"]
    mine = tmp_path / "mine.md"
    mine.write_text("# Mine\n")
    small.push_to_hub("me/zoo", card=mine)
    assert hub.dataset().files()["README.md"] == b"# Mine\n"
    assert small.push_to_hub("me/zoo", license="mit").uploaded == 0
    assert hub.dataset().files()["README.md"] == b"# Mine\n"
    small.push_to_hub("me/other", card=False)
    assert "README.md" not in hub.dataset("me/other").files()


def test_both_snippets_of_the_card_run_against_the_hub(hub, small):
    small.push_to_hub("me/zoo")
    card = hub.dataset().files()["README.md"].decode()
    with_zoarium, download, without = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    scope: dict[str, object] = {}
    exec(with_zoarium, scope)
    assert len(scope["zoo"]) == 6
    exec(download + without, scope)
    assert len(scope["models"]) == 6
    assert set(scope["state"]) == set(small["mlp-w2-s0"].state_dict())
