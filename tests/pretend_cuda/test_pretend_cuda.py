"""What the pretended device must refuse, allow and count."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.pretend_cuda.device_tensor import DeviceTensor
from tests.pretend_cuda.session import PretendCuda


@pytest.fixture
def gpu() -> Iterator[PretendCuda]:
    with PretendCuda() as session:
        yield session


def test_factories_and_moves_put_tensors_on_the_device(gpu: PretendCuda) -> None:
    for t in (
        torch.zeros(3, device="cuda"),
        torch.arange(4, device=torch.device("cuda:0")),
        torch.tensor([1.0, 2.0], device="cuda"),
        torch.randn(2, device="cuda"),
        torch.empty(2, 2).cuda(),
        torch.ones(3).to("cuda"),
        torch.eye(3, device="cuda", dtype=torch.float64),
        torch.full((2,), 3, device="cuda"),
        torch.linspace(0, 1, 3, device="cuda"),
        torch.as_tensor([1], device="cuda"),
        torch.ones(2).to(device="cuda", dtype=torch.float64),
        torch.zeros_like(torch.ones(2), device="cuda"),
        torch.ones(2).new_zeros(2, device="cuda"),
        torch.randperm(3, device="cuda"),
    ):
        assert isinstance(t, DeviceTensor), t
        assert t.device == torch.device("cuda:0")
        assert t.is_cuda
    with torch.device("cuda"):
        assert torch.zeros(3).is_cuda
    x = torch.zeros(3, device="cuda")
    assert x.to("cuda") is x
    assert x.to(torch.device("cuda:0")) is x
    assert x.cuda() is x
    assert torch.zeros_like(x).is_cuda
    assert x.new_zeros(2).is_cuda
    assert x.new_tensor([1.0]).is_cuda
    assert not torch.zeros_like(x, device="cpu").is_cuda


def test_operands_of_two_devices_are_rejected(gpu: PretendCuda) -> None:
    x, y = torch.ones(3, device="cuda"), torch.ones(3)
    for f in (
        lambda: x + y,
        lambda: y + x,
        lambda: torch.cat([x, y]),
        lambda: x @ y,
        lambda: torch.where(x > 0, x, y),
        lambda: y.add_(x),
        lambda: x.mul_(y),
        lambda: F.linear(x, torch.ones(2, 3)),
        lambda: F.embedding(torch.tensor([0]), torch.ones(3, 2, device="cuda")),
        lambda: x.gather(0, torch.tensor([0])),
        lambda: x.index_select(0, torch.tensor([0])),
        lambda: y + torch.tensor(1.0, device="cuda"),
        lambda: torch.stack([x, y]),
        lambda: x.masked_fill(y > 0, 0.0),
        lambda: torch.add(x, x, out=y),
        lambda: torch.zeros(()).add_(x.sum()),
        lambda: torch.tensor([1.0, 2.0]).dot(x),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            f()


def test_host_scalars_are_accepted(gpu: PretendCuda) -> None:
    x = torch.ones(3, device="cuda")
    assert (x + torch.tensor(1.0)).is_cuda
    assert (torch.tensor(2.0) * x).is_cuda
    assert torch.where(x > 0, x, torch.tensor(0.0)).is_cuda
    x += torch.tensor(1.0)
    assert x.tolist() == [2.0, 2.0, 2.0]
    assert (x**2).is_cuda
    assert (2 - x).is_cuda
    x.clamp_(min=torch.tensor(0.0))


def test_indices_may_be_on_the_host(gpu: PretendCuda) -> None:
    x = torch.arange(6, device="cuda").view(2, 3)
    assert x[torch.tensor([0])].is_cuda
    assert x[[1]].tolist() == [[3, 4, 5]]
    assert x[x > 2].tolist() == [3, 4, 5]
    x[torch.tensor([0])] = 7
    x[0, 1:] = torch.tensor([8, 9])
    x[:, torch.tensor([0], device="cuda")] = torch.tensor(5)
    assert x.tolist() == [[5, 8, 9], [5, 4, 5]]
    with pytest.raises(RuntimeError, match="indices should be"):
        torch.ones(3)[torch.tensor([0], device="cuda")]
    with pytest.raises(RuntimeError, match="same device"):
        x[torch.tensor([0])] = torch.tensor([[1, 2, 3]])
    assert gpu.log.waits


def test_views_share_their_storage(gpu: PretendCuda) -> None:
    x = torch.zeros(4, 4, device="cuda")
    v = x.view(2, 8)[0]
    v.fill_(1.0)
    assert x.sum().item() == 8
    x.diagonal().copy_(torch.full((4,), 5.0))
    assert x[3, 3].item() == 5
    x.T[0].add_(1)
    assert x[3, 0].item() == 1
    out = torch.empty(4, 4, device="cuda")
    assert torch.mm(x, x, out=out) is out
    h = torch.ones(4)
    h.copy_(x[0])
    assert h.tolist() == x[0].tolist()
    a = x.split(2)
    a[0].zero_()
    assert x[:2].abs().sum() == 0
    c = x.detach()
    c.fill_(3)
    assert x.sum() == 48
    assert x.untyped_storage().data_ptr() == c.untyped_storage().data_ptr()


def test_the_host_reads_copies_only(gpu: PretendCuda) -> None:
    x = torch.ones(3, device="cuda")
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        x.numpy()
    assert x.cpu().numpy().sum() == 3
    assert x.tolist() == [1, 1, 1]
    assert float(x[0]) == 1
    assert bool(x[0])
    assert gpu.log.copies
    assert gpu.log.waits
    repr(x)


def test_gradients_stay_on_their_device(gpu: PretendCuda) -> None:
    w = torch.randn(3, 3, device="cuda", requires_grad=True)
    ((w @ w).square().sum() + (torch.tensor(2.0) * w).sum()).backward()
    r = w.detach().cpu().requires_grad_()
    ((r @ r).square().sum() + (torch.tensor(2.0) * r).sum()).backward()
    assert w.grad.is_cuda
    assert torch.equal(w.grad.cpu(), r.grad)
    c = torch.randn(3, requires_grad=True)
    (c.cuda() * 2).sum().backward()
    assert c.grad.tolist() == [2, 2, 2]
    assert not c.grad.is_cuda
    x = torch.zeros(3, device="cuda", requires_grad=True)
    y = x.clone()
    y[0] = 5
    y[1:].mul_(2)
    y.sum().backward()
    assert x.grad.tolist() == [0, 2, 2]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("k", torch.ones(3))
        self.plain = torch.ones(3)

    def forward(self, x: torch.Tensor, plain: bool = False) -> torch.Tensor:
        return self.b(F.silu(self.a(x))) * self.k * (self.plain if plain else 1)


def test_modules_move_and_train_as_on_the_host(gpu: PretendCuda) -> None:
    m = Tied()
    ref = copy.deepcopy(m)
    p = m.a.weight
    m.to("cuda")
    assert m.a.weight is m.b.weight is p
    assert p.is_cuda
    assert m.k.is_cuda
    assert isinstance(p, nn.Parameter)
    o = torch.optim.AdamW(m.parameters(), lr=0.1)
    o2 = torch.optim.AdamW(ref.parameters(), lr=0.1)
    x = torch.randn(5, 3)
    for _ in range(3):
        for mm, oo, xx in ((m, o, x.cuda()), (ref, o2, x)):
            oo.zero_grad()
            mm(xx).square().sum().backward()
            nn.utils.clip_grad_norm_(mm.parameters(), 1.0)
            oo.step()
    assert torch.allclose(m.a.weight.cpu(), ref.a.weight)
    with pytest.raises(RuntimeError, match="same device"):
        m(x)
    with pytest.raises(RuntimeError, match="same device"):
        m(x.cuda(), True)
    d = copy.deepcopy(m)
    assert d.a.weight is d.b.weight
    assert d.a.weight.is_cuda
    m.to("cpu")
    assert not m.a.weight.is_cuda
    m.to(torch.bfloat16)
    sd = d.state_dict()
    assert sd["k"].is_cuda
    d.load_state_dict(ref.state_dict())
    assert d.a.weight.is_cuda
    d.to(torch.float64)
    assert d.a.weight.dtype == torch.float64
    assert d.a.weight.is_cuda


def test_the_device_has_random_numbers_of_its_own(gpu: PretendCuda) -> None:
    g = torch.Generator(device="cuda").manual_seed(1)
    assert g.device == torch.device("cuda:0")
    a = torch.multinomial(torch.ones(9, device="cuda"), 4, generator=g)
    g.manual_seed(1)
    assert a.tolist() == torch.multinomial(torch.ones(9, device="cuda"), 4, generator=g).tolist()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())
    torch.manual_seed(0)
    x = torch.rand(3, device="cuda")
    torch.manual_seed(0)
    assert torch.equal(x, torch.rand(3, device="cuda"))


def test_factorisations_run_on_the_device(gpu: PretendCuda) -> None:
    x = torch.randn(5, 5, device="cuda", dtype=torch.float64)
    s = x @ x.mT + torch.eye(5, device="cuda", dtype=torch.float64)
    v, q = torch.linalg.eigh(s)
    assert torch.allclose(q * v @ q.mT, s)
    c, i = torch.linalg.cholesky_ex(s)
    assert not i.any()
    torch.cholesky_solve(x, c)
    torch.cholesky_inverse(c)
    torch.linalg.qr(x)
    torch.linalg.svd(x)
    torch.linalg.solve(s, x)
    with pytest.raises(RuntimeError, match="addmm_cuda"):
        torch.ones(2, 2, device="cuda", dtype=torch.int64) @ torch.ones(
            2, 2, device="cuda", dtype=torch.int64
        )
    assert gpu.log.device_flops


def test_memory_is_counted_and_bounded() -> None:
    with PretendCuda(memory=2**20):
        x = torch.zeros(1024, device="cuda")
        assert torch.cuda.memory_allocated() == 4096
        v = x[:10]
        y = x + 1
        assert torch.cuda.memory_allocated() == 8192
        del y
        assert torch.cuda.memory_allocated() == 4096
        assert torch.cuda.max_memory_allocated() == 8192
        del x
        assert torch.cuda.memory_allocated() == 4096
        del v
        assert torch.cuda.memory_allocated() == 0
        torch.cuda.reset_peak_memory_stats()
        assert torch.cuda.max_memory_allocated() == 0
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(2**20, device="cuda")
        assert torch.cuda.mem_get_info() == (2**20, 2**20)


def test_graphs_take_memory(gpu: PretendCuda) -> None:
    w = torch.ones(1000, device="cuda", requires_grad=True)
    y = w.exp().exp()
    assert torch.cuda.memory_allocated() == 4096 * 3
    y.sum().backward()
    del y
    assert torch.cuda.memory_allocated() == 4096 * 2


def test_attention_and_autocast_are_those_of_a_gpu(gpu: PretendCuda) -> None:
    q = torch.randn(1, 2, 4, 8, device="cuda")
    a = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert torch.allclose(
        a.cpu(), F.scaled_dot_product_attention(q.cpu(), q.cpu(), q.cpu(), is_causal=True)
    )
    with pytest.raises(RuntimeError, match="same device"):
        F.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(4, 4, dtype=torch.bool))
    w = torch.randn(8, 8, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = F.linear(q, w)
        n = nn.LayerNorm(8, device="cuda", dtype=torch.bfloat16)(q.bfloat16())
        assert n.dtype == torch.float32
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert w.grad.dtype == torch.float32


def test_two_devices_are_apart() -> None:
    with PretendCuda(devices=2):
        x = torch.ones(2, device="cuda:1")
        assert x.device == torch.device("cuda:1")
        with pytest.raises(RuntimeError, match="cuda:1 and cuda:0"):
            x + torch.ones(2, device="cuda")
        y = x.requires_grad_()
        (y.to("cuda:0") * 2).sum().backward()
        assert y.grad.device.index == 1
        with pytest.raises(RuntimeError, match="ordinal"):
            torch.ones(2, device="cuda:2")
        with torch.cuda.device(1):
            assert torch.ones(1, device="cuda").device.index == 1


def test_views_keep_the_inference_mode_of_their_base(gpu: PretendCuda) -> None:
    with torch.inference_mode():
        x = torch.ones(3, 3, device="cuda")
        y = x @ x
        y[0] = 1
        y += 1
        z = y.cpu()
        assert z.is_inference()
        assert y.is_inference()
    x = torch.ones(3, 3, device="cuda")
    with torch.inference_mode():
        v = x[:, -1:]
        v.fill_(2)
        w = x.view(9)
        u = v + 1
        assert u.is_inference()
        assert not v.is_inference()
    assert x.sum().item() == 12
    assert w.device.type == "cuda"


def test_safetensors_load_to_the_device(gpu: PretendCuda, tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, device="cuda"), "b": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert load_file(tmp_path / "x.safetensors", device="cuda")["a"].is_cuda
    with safe_open(tmp_path / "x.safetensors", framework="pt", device="cuda:0") as f:
        assert f.get_tensor("a").is_cuda
        assert f.get_slice("a")[:2].is_cuda


def test_nothing_is_left_after_the_session() -> None:
    with PretendCuda():
        torch.ones(1, device="cuda")
    assert not torch.cuda.is_available()
    x = torch.randn(3, requires_grad=True)
    x.sum().backward()
    assert x.grad.tolist() == [1, 1, 1]
    with pytest.raises((AssertionError, RuntimeError), match="CUDA"):
        torch.ones(1, device="cuda")
