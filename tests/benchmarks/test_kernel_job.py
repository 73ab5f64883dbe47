"""Kernels: a wrong or failing size is left out with its reason, lists are what they say, launches are chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.arms import (
    attention,
    decode_attention,
    gemv,
    hard_attention,
    sparse_attention,
    sparse_decode,
    step_kernels,
    tuned,
    tuning,
)
from benchmarks.arms.problem import KernelArm, Problem
from benchmarks.suites import SUITES
from torch import Tensor

from benchmarks import planner, results, run, waves
from inference_pio.compat import has_triton
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.block_sparse import naive_block_sparse_attention
from inference_pio.kernels.page_list import PageList
from tests.sweep import turn_of_this_commit

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def smoke(suite: str, out: Path, *words: str) -> dict[str, Any]:
    assert run.main([suite, "--smoke", "--out", str(out), *words]) == 0
    return results.read(out)["arms"]


def faulty(*lengths: int, error: Exception | None = None) -> KernelArm:
    """SDPA, but without its mask at these lengths, or with an error."""

    def make(problem: Problem, device: torch.device, smoke: bool) -> Any:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            bad = problem["length"] in lengths
            if bad and error:
                raise error
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=not bad, enable_gqa=True
            )

        return attend

    return KernelArm("faulty", make)


def test_a_wrong_size_is_left_out_and_the_others_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.ARMS, "math", faulty(64))
    arm = smoke("attention:math", tmp_path / "out.json")["math"]
    assert (arm["status"], list(arm["cases"])) == ("ok", ["32"])
    assert arm["notes"] == [f"64: wrong, its output is {arm['check']['error']['64']:.3g} off, 0.01 allowed"]


def test_a_failing_size_is_left_out_and_the_others_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.ARMS, "math", faulty(32, error=RuntimeError("at 43:16\nmuch code\nno such type")))
    arm = smoke("attention:math", tmp_path / "out.json")["math"]
    assert (arm["status"], list(arm["cases"])) == ("ok", ["64"])
    assert arm["notes"] == ["32: RuntimeError: at 43:16 ... no such type"]


def test_a_size_that_fails_while_timed_is_left_out_and_the_others_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def make(problem: Problem, device: torch.device, smoke: bool) -> Any:
        def attend(*tensors: Tensor) -> Tensor:
            calls.append(problem["length"])
            if problem["length"] == 64 and calls.count(64) == 4:  # the check's call is one, a round's are three
                raise RuntimeError("out of memory")
            return torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)

        return attend

    monkeypatch.setitem(attention.ARMS, "math", KernelArm("faulty", make))
    arm = smoke("attention:math", tmp_path / "out.json")["math"]
    assert (arm["status"], list(arm["cases"]), len(arm["cases"]["32"]["samples"])) == ("ok", ["32"], 2)
    assert arm["notes"] == ["64: while timed: RuntimeError: out of memory"]


def test_a_wrong_system_may_be_timed_beside_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.arms import table

    def unlike(model: Any, room: Any) -> Any:
        torch.nn.init.normal_(model.model.layers[0].self_attn.o_proj.weight)
        return table.GenerateDecoder(model)

    monkeypatch.setitem(table.ARMS, "liger", table.Arm("unlike", unlike))
    words = ("decode-qwen3-4b:plain,liger", tmp_path / "out.json")
    arm = smoke(*words)["liger"]
    assert (arm["status"], arm["cases"], "timed although wrong" in arm) == ("wrong", {}, False)
    arm = smoke(*words, "--time-wrong")["liger"]
    assert (arm["status"], arm["cases"]) == ("wrong", {})
    assert arm["timed although wrong"]["decode"]["median"] > 0


def test_what_was_timed_is_on_disk_when_a_run_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []

    def cut_short(*given: Any) -> None:
        turns.append(given)
        if len(turns) == 2:
            raise KeyboardInterrupt
        turn(*given)

    turn = waves._turn
    monkeypatch.setattr(waves, "_turn", cut_short)
    with pytest.raises(KeyboardInterrupt):
        smoke("attention:flash,math", tmp_path / "out.json")
    found = results.read(tmp_path / "out.json")["arms"]
    assert {name: (arm["status"], arm["rounds"]) for name, arm in found.items()} == {
        "flash": ("ok", 1),
        "math": ("ok", 1),
    }
    monkeypatch.undo()
    assert smoke("attention:flash,math", tmp_path / "out.json", "--resume") == found


def test_a_run_goes_on_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "recorded")
    (tmp_path / "recorded").mkdir()
    monkeypatch.setattr(run, "_options", options_without_out(run._options))
    words = ["--smoke", "--out", "unused", "--into", str(tmp_path / "first")]
    assert run.main(["attention:flash", *words]) == 0
    (path,) = (tmp_path / "first").iterdir()
    path.rename(tmp_path / "recorded" / path.name)
    words[-1] = str(tmp_path / "second")
    assert run.main(["attention:math", *words, "--resume"]) == 0
    assert set(results.read(tmp_path / "second" / path.name)["arms"]) == {"flash", "math"}


def options_without_out(options: Any) -> Any:
    """A smoke run must be told where to write; here it is to write where a real one does."""

    def parse(words: list[str]) -> Any:
        found = options(words)
        found.out = None
        return found

    return parse


def test_prompts_lie_as_in_models_and_results_of_another_layout_are_told_apart() -> None:
    by_chance = attention.inputs(40, 4, 2, 16, CPU)
    recorded = sparse_attention.recorded_inputs(40, (4, 2, 16), True, CPU)
    for tensor in (*by_chance, *recorded):
        assert not tensor.is_contiguous()
        assert tensor.transpose(1, 2).is_contiguous()
    suite = SUITES["attention"]
    assert suite.settings()["layout"] == attention.problems(suite, False)[0]["layout"] == "tokens before heads"
    assert replace(suite, layout="").settings() == {k: v for k, v in suite.settings().items() if k != "layout"}
    assert "layout" not in SUITES["attention-decode"].settings()


def test_lists_by_density_and_by_window_are_what_they_say() -> None:
    lists = sparse_attention.built_lists(1024, 4, 0.125, CPU, 64, 64)
    assert sparse_attention.density_of(lists, 1024) == pytest.approx(0.125 + 0.875 * 2 / 8.5, abs=0.03)
    seen = sparse_attention.window_lists(1024, 1, CPU, 64, sinks=128, window=256).mask(1024, 1024)[0, 0]
    rows, columns = torch.arange(1024)[:, None] // 64 * 64, torch.arange(1024) // 128 * 128
    wanted = (columns < 128) | ((columns + 128 > rows - 255) & (columns <= rows + 63))
    assert torch.equal(seen & (columns <= rows + 63), wanted & (columns <= rows + 63))


def test_what_lists_leave_out_must_be_left_out() -> None:
    query, key, value = attention.inputs(256, 4, 2, 16, CPU)
    lists = sparse_attention.built_lists(256, 4, 0.2, CPU, 32, 32)
    right = naive_block_sparse_attention(query, key, value, lists)
    assert attention.error_of(right, query, key, value, lists) < 1e-5
    dense = naive_attention(query, key, value, causal=True)
    assert attention.error_of(dense, query, key, value, lists) > 0.1
    assert sparse_attention.coverage_of(lists, query, key) < 0.9
    everything = sparse_attention.built_lists(256, 4, 1.1, CPU, 32, 32)
    assert sparse_attention.coverage_of(everything, query, key) == pytest.approx(1.0)
    assert sparse_attention.density_of(everything, 256) == 1.0


def test_selected_lists_cover_and_the_last_ones_are_remembered() -> None:
    select = sparse_attention.Selector()
    topics = torch.nn.functional.one_hot(torch.arange(32) % 8, 64).repeat_interleave(64, 0).bfloat16()
    query, key = 40 * topics.expand(1, 2, -1, -1), topics.expand(1, 1, -1, -1)
    lists = select(query, key, 0.95)
    assert sparse_attention.coverage_of(lists, query, key) >= 0.95
    assert sparse_attention.density_of(lists, 2048) < 0.9
    assert select.last(query, key, 0.95) is lists
    other = query.clone()
    assert select.last(other, key, 0.95) is not lists


def test_the_least_density_is_what_the_true_weights_need() -> None:
    key = torch.zeros(1, 1, 1024, 4)
    even = sparse_attention.least_density(torch.zeros(1, 2, 1024, 4), key, 0.95, 64, 64)
    assert 0.95 <= even <= 1.0  # all keys weigh the same, those of the last block are seen by half: 98% are asked for
    key[:, :, :64, 0] = 40.0
    query = torch.ones(1, 2, 1024, 4)
    peaked = sparse_attention.least_density(query, key, 0.95, 64, 64)
    assert peaked <= 0.15  # one block of 4 to 15
    half = torch.cat([torch.zeros(1, 1, 1024, 4), query[:, :1]], 1)
    assert abs(sparse_attention.least_density(half, key, 0.95, 64, 64) - (even + peaked) / 2) < 0.01


def test_recorded_inputs_have_the_scores_of_the_model() -> None:
    query, key, value = sparse_attention.recorded_inputs(200, (4, 2, 128), True, CPU)
    assert (query.shape, key.shape, value.shape) == ((1, 4, 200, 128), (1, 2, 200, 128), (1, 2, 200, 128))
    own_query, own_key, _ = sparse_attention._recorded(128, CPU)
    scores = query[0, 0, :64].float() @ key[0, 0, :64].float().T * 128**-0.5
    wanted = own_query[0, :64].float() @ own_key[0, :64].float().T * 64**-0.5
    torch.testing.assert_close(scores, wanted, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(key[0, 0, 128:], key[0, 0, :72])


def test_a_token_that_decode_does_not_see_is_found_out() -> None:
    problem = decode_attention.problem((4, 2, 64), 2, 40, 96)
    _, _, _, lengths = inputs = problem.draw(CPU)
    query, keys, values = decode_attention.heads_first(problem, inputs)
    assert keys.shape == (2, 2, 40, 64)
    right = naive_attention(query, keys, values)[:, :, 0]
    assert problem.error(right, inputs) < 1e-5
    assert problem.error(naive_attention(query, keys[:, :, 1:], values[:, :, 1:])[:, :, 0], inputs) > problem.tolerance
    assert int(lengths) == 40


def test_pages_that_are_not_the_best_or_not_read_are_found_out() -> None:
    (problem, *_) = sparse_decode.problems(SUITES["attention-sparse-decode"].smoked(), True)
    query, key, value, _ = inputs = problem.draw(CPU)
    listed = sparse_decode._listed(problem, inputs)
    assert listed.indices[0, 0].tolist() == [0, 2, 3, 4]  # 320 tokens are five pages, of which four are read
    assert sparse_decode.seen_by(listed, 320).sum(-1).tolist() == [[256, 256]]
    judge = sparse_decode.ARMS["pio-pages"].error
    assert judge is not None
    read = torch.cat([torch.arange(64), torch.arange(128, 320)])
    right = naive_attention(query[:, :, None], key[:, read].transpose(1, 2), value[:, read].transpose(1, 2))[:, :, 0]
    assert judge(problem, right, inputs) < 1e-5
    whole = naive_attention(query[:, :, None], key.transpose(1, 2), value.transpose(1, 2))[:, :, 0]
    assert judge(problem, whole, inputs) > problem.tolerance
    key[:, 64:128] *= 4  # the page that is left out is now the one that every head asks for
    assert sparse_decode.lost(problem, inputs, listed) > 0.5
    indices = torch.tensor([0, 1, 3, 4], dtype=torch.int32).expand(1, 2, 4)
    assert sparse_decode.lost(problem, inputs, PageList(listed.counts, indices)) < 0.01
    assert sparse_decode.lost(problem, inputs, PageList(listed.counts + 1, torch.arange(5).expand(1, 2, 5))) == 1.0


def test_padding_that_is_seen_is_found_out() -> None:
    (problem,) = [
        one for one in hard_attention.problems(SUITES["attention-hard"].smoked(), True) if "prompts" in one.name
    ]
    query, key, value, _ = inputs = problem.draw(CPU)
    blind = naive_attention(query, key, value, causal=True).transpose(1, 2)
    assert problem.error(blind, inputs) > problem.tolerance


def test_each_launch_is_listed_once_and_serves_lists_of_128() -> None:
    for variants in tuning.VARIANTS.values():
        names = [tuning.spelled(launch) for launch in variants]
        assert len(set(names)) == len(names)
    assert all(sparse_attention.KEY_BLOCK % launch.key_block == 0 for launch in tuning.LISTED)


@pytest.mark.slow
@pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
def test_launches_are_tuned_and_the_best_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "tune-flash-some-gpu.json"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    words = [
        sys.executable,
        "-W",
        "ignore",
        "benchmarks/run.py",
        "tune-flash:padded,listed",
        "--smoke",
        "--out",
        str(out),
    ]
    subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True)
    arms = results.read(out)["arms"]
    assert set(arms["listed"]["cases"]) == {tuning.spelled(launch) for launch in tuning.LISTED}
    best = arms["listed"]["best"]
    assert best["value"] == max(row["median"] for row in arms["listed"]["cases"].values())
    monkeypatch.setenv(results.INTO, str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert tuned.best("tune-flash", torch.device("cuda"), "listed") == best["launch"]
    assert tuned.best("tune-flash", torch.device("cuda"), "described") is None
    assert tuned.best("tune-decode", torch.device("cuda"), "4:1") is None


@pytest.mark.parametrize(
    "suite",
    [
        pytest.param("step-kernels", marks=[] if turn_of_this_commit() % 8 == 3 else pytest.mark.slow),
        *(pytest.param(suite, marks=pytest.mark.slow) for suite in ("gemv", "attention-sparse-decode")),
    ],
)
@pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
def test_kernels_of_a_step_are_right_at_every_size(suite: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out.json"
    words = [sys.executable, "-W", "ignore", "benchmarks/run.py", suite, "--smoke", "--out", str(out)]
    subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True)
    arms = results.read(out)["arms"]
    assert set(arms) == set(SUITES[suite].arms)
    sizes = [set(arm["cases"]) for arm in arms.values()]
    assert sizes[0]
    assert all(one == sizes[0] for one in sizes)
    assert not any(arm["notes"] for arm in arms.values())
    for name in ("pio-rule", "pio-tuned", "pio-dependent"):
        cases = arms[name]["cases"] if name in arms else {}
        assert all(row["facts"]["launch"]["rows"] for row in cases.values())


@pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
def test_a_launch_that_was_found_is_recorded_with_all_that_were_tried() -> None:
    from inference_pio.kernels.triton.gemv_launch import GemvLaunch
    from inference_pio.kernels.triton.gemv_tuning import Tuning

    (problem, *_) = gemv.problems(SUITES["gemv"], True)
    slow, fast = GemvLaunch(1, 512, 1), GemvLaunch(2, 256, 1)
    run: Any = gemv._found(problem, Tuning(fast, {slow: 12.0, fast: 10.0}, ("one was wrong",)))
    assert run.facts["launch"] == {"rows": 2, "columns": 256, "warps": 1, "stages": 0, "dependent": False, "parts": 1}
    assert [row["us"] for row in run.facts["tried"]] == [10.0, 12.0]
    assert run.facts["notes"] == ["one was wrong"]


def test_what_a_step_must_read_is_told_with_its_floor() -> None:
    found = {one.name: one for one in gemv.problems(SUITES["gemv"], False)}
    assert len(found) == len(gemv.problems(SUITES["gemv"], False)) == 15 + 5 * 3 + 2
    head = found["4B head 151936 x 2560"]
    assert head["floor_us"] == pytest.approx(259.3, abs=0.1)
    kernels = {one.name: one["floor_us"] for one in step_kernels.problems(SUITES["step-kernels"], False)}
    assert kernels["attention 4B 32768"] == pytest.approx(44.7, abs=0.1)
    assert kernels["expert_gate_up 30B-A3B"] == pytest.approx(16.8, abs=0.1)
    assert kernels["latent Flash 32768"] == pytest.approx(12.6, abs=0.1)


def test_an_expert_that_is_left_out_and_a_token_that_is_not_seen_are_found_out() -> None:
    found = {one.name: one for one in step_kernels.problems(SUITES["step-kernels"].smoked(), True)}
    problem = found["expert_down small"]
    hidden, down, index, shares, residual = inputs = problem.draw(CPU)
    right = step_kernels._naive_down(*inputs)
    assert problem.error(right, inputs) < 1e-6
    assert problem.error(step_kernels._naive_down(hidden, down, index, shares, 0 * residual), inputs) > 0.1
    shares[0, 0] = 0
    assert problem.error(right, (hidden, down, index, shares, residual)) > problem.tolerance
    problem = found["latent Flash 64"]
    query, turned, cache, lengths = inputs = problem.draw(CPU)
    short = step_kernels._naive_latent(query, turned, cache[:, 1:], lengths, scale=problem["how"]["scale"])
    assert problem.error(short, inputs) > problem.tolerance


def test_the_planner_cuts_slices_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list", "--minutes", "2.7", "prefill-qwen3-4b:plain,compile", "attention-latent"]) == 0
    told = capsys.readouterr().out
    assert "slice 1, 160 s: prefill-qwen3-4b (plain, compile); attention-latent (library)" in told
    assert "slice 2, 45 s: attention-latent (pio)" in told
    assert planner.slices([("a", "x", 500.0)], 100) == [[("a", "x", 500.0)]]


@pytest.mark.parametrize("word", ["attn", "attention:fastest"])
def test_an_unknown_suite_or_system_is_told_before_anything_runs(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main([word])
    assert "no s" in capsys.readouterr().err
