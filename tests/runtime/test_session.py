"""Sessions: errors are ours, weights are bound without a copy, threads may share them, forks are told."""

from __future__ import annotations

import multiprocessing
import threading

import numpy as np
import pytest

from masklet import testing
from masklet.errors import DeviceError, EngineError, InputError
from masklet.runtime import devices
from masklet.runtime.cache import load_stage
from masklet.runtime.session import Session


@pytest.fixture(scope="module")
def session():
    stage = load_stage(testing.tiny_config(), "encode_points", 128, "fused")
    weights = testing.lively_weights(stage.tensors)
    return Session(stage, weights.__getitem__, devices.find_device("cpu"), 1)


def feeds(batch=1):
    return {"coords": np.ones((batch, 2, 2), np.float32), "labels": np.ones((batch, 2), np.int64)}


def test_wrong_shapes_name_stage_and_shapes(session):
    wrong = {**feeds(), "coords": np.ones((1, 2, 3), np.float32)}
    with pytest.raises(EngineError, match=r"stage 'encode_points' with coords \(1, 2, 3\)"):
        session.run(wrong)


def test_a_graph_that_the_engine_refuses_is_our_error():
    stage = load_stage(testing.tiny_config(), "encode_points", 128, "fused")
    weights = testing.lively_weights(stage.tensors)
    broken = type(stage)(**{**vars(stage), "onnx": stage.onnx[:100]})
    with pytest.raises(EngineError, match="could not build stage 'encode_points'"):
        Session(broken, weights.__getitem__, devices.find_device("cpu"), 1)


def test_only_the_wanted_outputs_come_back(session):
    assert list(session.run(feeds(), ["sparse"])) == ["sparse"]


def test_threads_share_a_session(session):
    expected = session.run(feeds(3))["sparse"].numpy()
    results = []
    threads = [threading.Thread(target=lambda: results.append(session.run(feeds(3)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(np.array_equal(result["sparse"].numpy(), expected) for result in results)


def _child(session, queue):
    try:
        session.run(feeds())
        queue.put("ran")
    except EngineError as error:
        queue.put(str(error))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_what_to_do(session):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(session, queue))
    child.start()
    answer = queue.get(timeout=20)
    child.join()
    assert "after the fork" in answer


def test_a_device_that_is_not_installed_prints_the_install_line():
    with pytest.raises(DeviceError, match=r"Available here: .*cpu.*pip install onnxruntime-openvino"):
        devices.find_device("openvino")


def test_an_unknown_device_gets_a_suggestion():
    with pytest.raises(DeviceError, match="Did you mean 'cuda'"):
        devices.find_device("cudo")


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_are_whole_numbers(threads):
    with pytest.raises(InputError, match="whole number"):
        devices.session_options(threads)
