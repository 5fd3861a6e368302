"""Everything that needs a Ray cluster: one of two cores, on this machine, for all of these tests."""

import asyncio
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import zoarium as za
from zoarium import Estimates
from zoarium._core import ray_tasks, ray_worker
from zoarium._core.errors import DamagedError, GridError, MeasureError, MissingExtraError, ZoariumError
from zoarium._core.parallel import run_tasks
from zoarium._core.ray_tasks import _Shelf, connect
from zoarium._core.ray_worker import Post
from zoarium.growth.desk import FolderDesk, PostRoom
from zoarium.growth.grow import _programs
from zoarium.growth.job import Job
from zoarium.measure import MEASURES, measure
from zoarium.measure.driver import Job as MeasureJob
from zoarium.measure.driver import defaults_of
from zoarium.train import data_key
from zoarium.zoo.weights import pack_weights

TINY = {"width": [2, 4], "batch_size": [50, 250], "seed": range(2), "epochs": 3}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Address of the cluster this process is connected to."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = importlib.import_module("ray")
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False,
        logging_level="ERROR",
    )  # fmt: skip
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A zoo grown and measured without Ray."""
    return za.grow(za.Grid(**TINY), tmp_path_factory.mktemp("local") / "z", workers=1, checkpoints="every")


def weight_files(zoo):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (zoo.path / "weights").iterdir()}


def same_zoo(a, b):
    """Equal bytes of weights and equal tables, but for the seconds it took."""
    order = ["id", "epoch"]
    return (
        weight_files(a) == weight_files(b)
        and a.table.equals(b.table)
        and a.history.drop("seconds").sort(order).equals(b.history.drop("seconds").sort(order))
        and a.checkpoints.sort(order).equals(b.checkpoints.sort(order))
    )


# ---------------------------------------------------------------------- tasks


def test_tasks_give_their_results_on_one_thread_and_their_messages_arrive_before():
    seen = []

    def work(task, worker):
        worker.report(("small", task))
        worker.hand_over(("large", task))
        return task**2, torch.get_num_threads(), worker.remote

    got = dict(run_tasks(work, [1, 2, 3], backend="ray", on_report=seen.append))
    assert got == {0: (1, 1, True), 1: (4, 1, True), 2: (9, 1, True)}
    assert {task for kind, task in seen if kind == "large"} == {1, 2, 3}


def test_a_users_mistake_arrives_as_itself_and_a_bug_with_its_traceback():
    def fail(task, worker):
        if task:
            raise MeasureError("no such layer")
        return 1 // task

    with pytest.raises(MeasureError, match=r"^no such layer$"):
        list(run_tasks(fail, [1], backend="ray"))
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError(.|\n)*in fail"):
        list(run_tasks(fail, [0], backend="ray"))


def test_a_task_whose_worker_is_killed_is_sent_again_and_answers_once():
    seen, sent = [], []

    def patient(task, worker):
        worker.hand_over((task["n"], os.getpid(), task["try"]))
        deadline = time.monotonic() + 30
        while task["n"] == 1 and task["try"] == 1 and time.monotonic() < deadline:
            time.sleep(0.02)  # until it is killed
        return task["n"]

    def send(n, share):
        sent.append(n)
        return {"n": n, "try": sent.count(n)}

    def kill(message):
        seen.append(message)
        n, pid, attempt = message
        if n == 1 and attempt == 1:
            os.kill(pid, signal.SIGKILL)

    results = list(run_tasks(patient, [0, 1, 2], backend="ray", on_report=kill, send=send))
    assert sorted(results) == [(0, 0), (1, 1), (2, 2)]
    assert sorted(sent) == [0, 1, 1, 2]
    assert sorted((n, attempt) for n, _, attempt in seen) == [(0, 1), (1, 1), (1, 2), (2, 1)]


def test_a_task_that_always_kills_its_worker_ends_the_run_in_one_sentence(monkeypatch):
    monkeypatch.setattr(ray_tasks, "TRIES", 2)
    with pytest.raises(ZoariumError, match=r"lost 2 times .*WorkerCrashedError.*run the same command again to resume"):
        list(run_tasks(lambda task, worker: os.kill(os.getpid(), signal.SIGKILL), [0], backend="ray"))


def test_no_more_tasks_run_side_by_side_than_asked():
    seen = []

    def work(task, worker):
        worker.hand_over(("begin", task))
        worker.hand_over(("end", task))

    list(run_tasks(work, [0, 1, 2], backend="ray", workers=1, on_report=seen.append))
    assert [kind for kind, _ in seen] == ["begin", "end"] * 3


def ends(pid):
    """Whether a process ends before long; an idle worker of Ray's would stay."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("graceful", [True, False])
def test_closing_early_lets_graceful_tasks_save_and_ends_others(tmp_path, graceful):
    seen = []

    def work(task, worker):
        deadline = time.monotonic() + 60
        if task:
            (tmp_path / f"{os.getpid()}.begun").touch()
        while not (worker.stopping if task else any(tmp_path.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.02)
        if worker.stopping:
            worker.hand_over("saved")
        return task

    running = run_tasks(work, [0, 1], backend="ray", graceful=graceful, on_report=seen.append)
    assert next(running) == (0, 0)
    running.close()
    assert seen == ["saved"] * graceful
    (begun,) = tmp_path.iterdir()
    assert graceful or ends(int(begun.stem))


def test_what_cannot_be_pickled_is_said_before_anything_is_sent():
    lock = threading.Lock()
    with pytest.raises(ZoariumError, match=r"cannot be sent to a Ray cluster .*without open files, locks"):
        list(run_tasks(lambda task, worker: lock, [0], backend="ray"))


def test_a_module_that_a_worker_lacks_is_named_with_a_way_out(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def work(task, worker):\n    return task\n")
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("only_here").work
    with pytest.raises(ZoariumError, match=r"has no module 'only_here'; install it on every machine, or .*working-dir"):
        list(run_tasks(work, [0], backend="ray"))


def test_a_task_that_misses_what_went_with_another_machine_is_lost_not_wrong():
    sent = []

    def work(task, worker):
        if task == 1:
            from ray.exceptions import ObjectLostError

            raise ObjectLostError("00" * 28, None, "")
        return task

    results = run_tasks(work, [0], backend="ray", send=lambda task, share: sent.append(task) or len(sent))
    assert list(results) == [(0, 2)]


def test_a_worker_with_another_torch_is_refused(monkeypatch):
    here = {**ray_tasks.versions(), "torch": "1.0"}
    monkeypatch.setattr(ray_tasks, "versions", lambda: here)
    with pytest.raises(ZoariumError, match=r"has torch 2\.\S+ and this process has 1\.0, .*same versions on every"):
        list(run_tasks(lambda task, worker: task, [0], backend="ray"))


def test_shared_things_are_stored_once_and_the_oldest_make_room(monkeypatch):
    monkeypatch.setattr(ray_tasks, "SHARED", 100)
    made = []

    class Store:
        def put(self, value):
            made.append(value)
            return value

    shelf = _Shelf(Store())
    for key in ("data", "a", "data", "b", "a", "c", "data", "a", "b"):
        shelf.share(key, lambda key=key: key, 0 if key == "data" else 50)
    assert made == ["data", "a", "b", "c", "b"]  # b was the oldest when c came


def test_a_sender_waits_until_there_is_room_unless_the_message_is_small(monkeypatch):
    monkeypatch.setattr(ray_worker, "ROOM", 10)

    async def story():
        post = Post()
        await post.send(0, 1, b"x" * 20, True)
        await post.send(0, 1, b"report", False)
        waiting = asyncio.create_task(post.send(1, 1, b"y" * 20, True))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        first = await post.take()
        await waiting
        return [message for _, _, message in first], [message for _, _, message in await post.take()]

    assert asyncio.run(story()) == ([b"x" * 20, b"report"], [b"y" * 20])


# ---------------------------------------------------------------------- where the cluster is


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", r"no Ray cluster answers at '127\.0\.0\.1:9' \(.*refused\)"),
        ("nonsense", r"no Ray cluster answers at 'nonsense' \(it must be HOST:PORT or 'auto'\)"),
        ("ray://head:10001", r"ray://head:10001 is the address of a Ray Client server.*ray job submit"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_sentence(monkeypatch, tmp_path, address, message):
    monkeypatch.setattr(importlib.import_module("ray"), "is_initialized", lambda: False)
    with pytest.raises(ZoariumError, match=message):
        za.grow(za.Grid(**TINY), tmp_path / "z", backend="ray", address=address)
    assert set(za.open(tmp_path / "z").table["status"]) == {"planned"}  # the same call with a cluster goes on


def test_what_ray_says_when_it_cannot_connect_becomes_one_sentence(monkeypatch):
    ray = importlib.import_module("ray")

    def refuse(**options):
        raise ConnectionError("Could not find any running Ray instance.\nMore.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ZoariumError, match=r"at 'auto': Could not find any running Ray instance; start one with"):
        connect("auto")


def test_a_process_is_of_one_cluster_at_a_time(cluster):
    assert connect(cluster) is connect(None)
    with pytest.raises(ZoariumError, match=r"connected to the Ray cluster at .*, not to 10\.0\.0\.1:6379"):
        connect("10.0.0.1:6379")


def test_backends_and_addresses_that_make_no_sense_are_refused(tmp_path, small_zoo):
    with pytest.raises(ZoariumError, match=r"unknown backend 'rya'\. Did you mean 'ray'\?"):
        za.grow(za.Grid(**TINY), tmp_path / "z", backend="rya")
    with pytest.raises(ZoariumError, match=r"address 'auto' is of a cluster.*add backend='ray'"):
        small_zoo.measure("performance", address="auto")
    assert not (tmp_path / "z").exists()


def test_without_ray_the_install_line_is_said_and_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"backend='ray' needs ray.*pip install 'zoarium\[ray\]'"):
        za.grow(za.Grid(**TINY), tmp_path / "z", backend="ray")
    assert not (tmp_path / "z").exists()


def test_growing_and_measuring_here_does_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it now raises
    assert (
        len(za.grow("mlp", width=[2, 4], epochs=1, workers=2).measure("performance", workers=2).values("test_loss"))
        == 2
    )


# ---------------------------------------------------------------------- grow and measure


def test_a_zoo_grown_and_measured_on_ray_is_that_of_this_machine(tmp_path, local):
    zoo = za.grow(za.Grid(**TINY), tmp_path / "z", backend="ray", checkpoints="every")
    assert len(weight_files(zoo)) >= 4
    assert same_zoo(zoo, local)
    names = ("performance", "hessian_trace", "cka", "linear_barrier", "seed_averaging", "epoch_averaging")
    local.measure(*names, workers=1)
    zoo.measure(*names, backend="ray")
    for name in names:
        here, there = (z.stored(name).drop("seconds") for z in (local, zoo))
        keys = here.columns[: here.columns.index("quantity") + 1]
        assert len(here)
        assert here.sort(keys).equals(there.sort(keys)), name


def killable(folder, driver):
    """A factory of the user's own, pickled by value; workers leave their process ids."""

    def two_layers(in_shape, n_outputs, *, width=4):
        if os.getpid() != driver:
            (folder / str(os.getpid())).touch()
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, n_outputs))

    return two_layers


def test_a_program_whose_worker_is_killed_goes_on_elsewhere_to_the_same_bits(tmp_path, monkeypatch):
    (pids := tmp_path / "pids").mkdir()
    grid = za.Grid(killable(pids, os.getpid()), width=[2, 4], seed=range(2), epochs=30, batch_size=2)
    options = {"workers": 1, "cores": 1, "checkpoints": [1, 2, 30]}
    whole = za.grow(grid, tmp_path / "whole", **options)
    saved, killed = [], []
    send = PostRoom.send

    def spy(room, program, share):
        saved.append(send(room, program, share)[1])
        return program, saved[-1]

    def kill(done, total, note):
        if not killed and done >= 0.05 * total:
            killed.extend(int(path.name) for path in pids.iterdir())
            os.kill(killed[-1], signal.SIGKILL)

    monkeypatch.setattr(PostRoom, "send", spy)
    zoo = za.grow(grid, tmp_path / "z", backend="ray", save_every_s=0.0, on_progress=kill, **options)
    assert killed
    assert len(saved) == 1 + len(_programs(grid, grid.expand(), data_of(grid), "2GB", 1))
    assert saved[0] is None
    assert any(saved)  # the second worker went on from what the first had handed over
    assert same_zoo(zoo, whole)
    assert not zoo.history.select("id", "epoch").is_duplicated().any()
    assert (zoo.check()["state"] == "ok").all()


def data_of(grid):
    digits = za.data.load("digits")
    return {data_key(config): digits for config in grid.expand()}


def test_an_interrupt_saves_through_the_driver_and_resumes_to_the_same_bits(tmp_path, local):
    interrupts = []

    def interrupt(done, total, note):
        if not interrupts:
            interrupts.append(done)
            os.kill(os.getpid(), signal.SIGINT)

    grid = za.Grid(**{**TINY, "epochs": 100})
    with pytest.raises(KeyboardInterrupt):
        za.grow(grid, tmp_path / "z", backend="ray", on_progress=interrupt)
    states = list((tmp_path / "z" / "growing").glob("*.safetensors"))
    assert states
    assert FolderDesk(tmp_path / "z", states[0].stem).begin() is not None
    zoo = za.grow(grid, tmp_path / "z", workers=1)  # also without the cluster
    assert same_zoo(zoo, za.grow(grid, tmp_path / "whole", workers=1))


DRIVER = """
import sys
import zoarium as za
grid = za.Grid(width=[2, 4], batch_size=[50, 250], seed=range(2), epochs=3)
za.grow(grid, sys.argv[1], backend="ray", address=sys.argv[2], checkpoints="every", save_every_s=0.0)
"""


def test_a_killed_driver_resumes_to_the_same_bits(tmp_path, local, cluster):
    process = subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path / "z", cluster])
    deadline = time.monotonic() + 120
    while not list((tmp_path / "z" / "weights").glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert "planned" in za.open(tmp_path / "z").table["status"]
    assert same_zoo(za.grow(za.Grid(**TINY), tmp_path / "z", backend="ray", checkpoints="every"), local)


def test_a_measure_and_a_net_of_the_users_own_travel_by_value(tmp_path):
    (pids := tmp_path / "pids").mkdir()
    grid = za.Grid(killable(pids, os.getpid()), width=[2, 4], seed=range(2), epochs=1)
    zoo = za.grow(grid, tmp_path / "z", backend="ray")

    @measure("largest_weight", scope="model", needs_data=False)
    def largest_weight(cohort, data):
        """Largest weight of a model."""
        return Estimates(cohort.flat.abs().amax(1).numpy())

    try:
        zoo.measure("largest_weight", backend="ray")
    finally:
        del MEASURES._methods["largest_weight"]
    expected = {i: max(float(t.abs().max()) for t in zoo[i].state_dict().values()) for i in zoo.ids}
    assert dict(zoo.values("largest_weight").select("id", "value").iter_rows()) == pytest.approx(expected)


class Recorder:
    """A worker that shares nothing and keeps what it is handed."""

    remote, stopping = True, False

    def __init__(self):
        self.kept = []

    def report(self, message):
        pass

    def hand_over(self, message):
        self.kept.append(message)


def test_a_remote_program_touches_no_folder_and_hands_over_what_a_local_one_writes(tmp_path):
    grid = za.Grid(**TINY)
    configs, data = grid.expand(), data_of(grid)
    program = _programs(grid, configs, data, "2GB", 1)[0]
    (tmp_path / "zoo").mkdir()
    here = Job(tmp_path / "zoo", configs, data, None, "every", "every", 60.0)
    written = here(program, Recorder())
    worker = Recorder()
    grown = replace(here, folder=tmp_path / "not there")((program, None), worker)
    assert not (tmp_path / "not there").exists()
    assert grown.files == []
    room = PostRoom(tmp_path / "zoo")
    room.send(program, None)
    assert all(map(room.open, worker.kept))
    assert room.files_of(program) == written.files  # also in name: the bytes were there already
    assert not room.open("a report")


def test_what_a_measure_sends_holds_weights_and_no_path(local):
    from ray import cloudpickle

    from zoarium.measure.plan import plan_measure

    method = MEASURES["disagreement"]  # not stored yet
    job = MeasureJob.of(local, plan_measure(local, method, defaults_of(method), "cell", 2 << 30)[0])
    shared = {}

    class Box:
        def __init__(self, value):
            self.value = value

        def load(self):
            return self.value

    def share(key, make, nbytes=0):
        return shared.setdefault(key, Box(make()))

    sent = job.sent(share)
    assert str(local.path).encode() not in cloudpickle.dumps((sent, list(shared.values())))
    assert [cohort.load().ids for cohort in sent.cohorts] == [ref.ids for ref in job.cohorts]
    assert sent.data.load() is job.data


def test_damaged_weights_are_named_before_they_travel(small_zoo):
    file = small_zoo.checkpoints["file"][0]
    path = small_zoo.path / file
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedError, match=f"{os.path.basename(file)}.*are not what was written"):
        small_zoo.measure("weight_norm", backend="ray")


def test_the_command_line_grows_and_measures_on_a_cluster_and_prints_json_alone(tmp_path, cluster, capsys, monkeypatch):
    from zoarium.cli.app import run

    (tmp_path / "spec.yaml").write_text("net: mlp\nwidth: [2, 4]\nepochs: 1\n")
    where = ["--backend", "ray", "--address", cluster, "--json"]
    for words in (
        ["grow", tmp_path / "spec.yaml", "-o", tmp_path / "z", "--cores", "4", *where],
        ["measure", tmp_path / "z", "performance", *where],
    ):
        monkeypatch.setattr(sys, "argv", ["zoarium", *map(str, words)])
        with pytest.raises(SystemExit, match=r"^0$"):
            run()
        assert json.loads(capsys.readouterr().out)
    assert len(za.open(tmp_path / "z").values("test_loss")) == 2


@pytest.mark.parametrize("command", ["demo", "effects"])
def test_demo_and_effects_pass_on_where_the_work_is_done(command, monkeypatch, small_zoo, tmp_path, capsys):
    from zoarium.cli.app import run

    def work(*args, backend, address, workers, **others):
        raise ZoariumError(f"{backend} at {address} with {workers}")

    monkeypatch.setattr(importlib.import_module("zoarium.growth"), "grow", work)
    monkeypatch.setattr(type(small_zoo), "measure", work)
    words = {"demo": ["demo", "-o", tmp_path / "new"], "effects": ["effects", small_zoo.path]}[command]
    where = ["--backend", "ray", "--address", "auto", "-w", "7"]
    monkeypatch.setattr(sys, "argv", ["zoarium", *map(str, words), *where])
    with pytest.raises(SystemExit, match=r"^2$"):
        run()
    assert "ray at auto with 7" in capsys.readouterr().err


# ---------------------------------------------------------------------- the plan


def test_more_cores_cut_more_programs_of_the_same_size_at_most():
    grid = za.Grid(width=[2, 4, 8, 16], batch_size=[10, 50, 250], seed=range(4), epochs=3)
    configs, data = grid.expand(), data_of(grid)
    few, many = (_programs(grid, configs, data, "2GB", cores) for cores in (1, 16))
    assert len(few) < len(many)
    assert sorted(row for p in many for row in p.rows) == sorted(row for p in few for row in p.rows)
    assert max(p.bytes for p in many) <= max(p.bytes for p in few)
    with pytest.raises(GridError, match="cores must be 1 or more, found 0"):
        za.grow(grid, cores=0)


def test_a_checkpoint_that_comes_twice_is_kept_once(tmp_path):
    desk = FolderDesk(tmp_path, "abc")
    packed = pack_weights("abc", 3, 1, ["a", "b"], {"w": torch.zeros(2, 5)})
    desk.keep(0, packed)
    desk.keep(0, replace(packed))
    assert len(desk.files) == 1
    assert [f.name for f in (tmp_path / "weights").iterdir()] == ["abc@3.safetensors"]
