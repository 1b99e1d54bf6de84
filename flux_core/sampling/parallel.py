"""One run on several devices: each draws its shares of every step, the first does the rest.

    step     | device 0: its shares  | wait | combine, sampler |
             | device 1: its shares  |------'
    device 1 has a replica of the models (``offload.replicas``), its own plan, ring and modulations

Everything is computed as a run of one picture on one device computes it, with the same rows at
once, so that devices of one kind give the same bits, however many they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..lora import LoraStack, lora_applied
from ..offload import MemoryReport, OffloadPolicy, OffloadRunner, Work
from ..offload.devices import devices_of
from ..offload.drivers import Drivers
from ..offload.placement import placement_of
from ..offload.plan import Plan
from ..offload.replicas import forget_idle_replicas, replica_of
from ..quant.notices import warn_once
from .adapters import is_compiled
from .denoiser import Denoiser
from .kept import keeping
from .one_picture import pictures_of
from .parallel_work import RunCosts
from .request import DrawRequest
from .shares import Share, dealt, shares_of


@dataclass
class Member:
    """A device of a run: its runner, the models that are drawn with there, and their plan.

    ``work`` is what its shares take; ``number`` its place among the devices.
    """

    number: int
    runner: OffloadRunner
    modules: list[nn.Module]
    work: Work = field(default_factory=Work)
    plan: Plan | None = None

    def request(self, request: DrawRequest, between: Callable[[], None]) -> DrawRequest:
        """A request drawn with this device's models; ``between`` stands in the place of its
        own."""
        transformer, *nets = self.modules
        controls = [
            replace(control, net=net) for control, net in zip(request.controls, nets, strict=True)
        ]
        return replace_models(request, transformer, controls, between)


def replace_models(
    request: DrawRequest, transformer: nn.Module, controls: Sequence, between: Callable[[], None]
) -> DrawRequest:
    """A request with other models of the same kind; noise and sigmas stay."""
    other = replace(request, transformer=transformer, controls=controls, between=between)
    other.__dict__["noise_schedule"] = request.noise_schedule
    return other


class DeviceGroup:
    """The devices of a policy, for requests that are drawn one after another."""

    def __init__(
        self,
        runner: OffloadRunner,
        requests: Sequence[DrawRequest],
        devices: Sequence[torch.device],
    ) -> None:
        self.requests, self.modules = requests, requests[0].modules
        self.policies: list[OffloadPolicy | None] = requests[0].policies
        most = max(len(shares_of(request)) for request in requests)
        if most < len(devices):
            warn_once(
                f"{len(devices)} devices are named, and {most} of them can draw: a step has a "
                "share for each picture of a batch, or two with true guidance (cfg)"
            )
        self.members = [Member(0, runner, self.modules)]
        for number, device in enumerate(devices[1:most], 1):
            self.members.append(Member(number, runner.on(device), []))
        self.drivers = Drivers([])
        self.tries = 0

    @property
    def further(self) -> list[Member]:
        """All members but the first, which has the models themselves."""
        return self.members[1:]

    @contextmanager
    def ready(self, loras: LoraStack, name: str) -> Iterator[None]:
        """Each further device has replicas of the models inside the block, LoRAs beside them; what
        they took is entered in the report as parts of a ``name``."""
        try:
            with ExitStack() as stack:
                for member in self.further:
                    device = member.runner.device
                    member.modules = [replica_of(module, device) for module in self.modules]
                    for module, own in zip(self.modules, member.modules, strict=True):
                        if getattr(module, "part", "") != "controlnet":
                            stack.enter_context(lora_applied(module, loras, own))
                yield
            self.report(name)
        finally:
            for module in self.modules:
                forget_idle_replicas(module)

    def work(self) -> Work:
        """What the first device's shares take; that of the others is noted, and pinned on the host
        what they will copy. LoRAs are there, and nothing runs yet."""
        costs = [(RunCosts(request), shares_of(request)) for request in self.requests]
        for member in self.members:
            number = member.number
            works = [
                cost.share_work(hands[number], first=number == 0)
                for cost, shares in costs
                if len(hands := dealt(shares, len(self.members))) > number
            ]
            member.work = max(works, key=lambda work: work.activations)
        for member in self.further:
            runner = member.runner
            plan = runner.plan(member.modules, member.work, self.policies)
            first = self.members[0].runner
            for module, part in zip(self.modules, plan.modules, strict=True):
                if runner.device.type == "cuda":
                    first.pin(placement_of(module, first.device, first.separate), part)
        return self.members[0].work

    @contextmanager
    def holding(self, name: str, plan: Plan) -> Iterator[None]:
        """All devices have what they need inside the block, the first one by its ``plan``."""
        self.tries += 1
        self.members[0].plan = plan
        try:
            with ExitStack() as stack:
                for member in self.further:
                    runner = member.runner
                    if self.tries > 1:  # memory ran out somewhere
                        about = (member.modules, member.work, self.policies)
                        runner.policy = runner.smaller(*about)
                    held = runner.hold(
                        part_name(name, runner),
                        *member.modules,
                        work=member.work,
                        policies=() if self.tries > 1 else self.policies,
                    )
                    member.plan = stack.enter_context(held)
                devices = [member.runner.device for member in self.members]
                self.drivers = stack.enter_context(Drivers(devices))
                yield
        finally:
            if self.tries > 1:  # where memory is this short nothing stays
                for member in self.further:
                    for module in member.modules:
                        placement_of(module, member.runner.device).evict()

    def report(self, name: str) -> None:
        """Enter what further devices took into the first one's report."""
        runner = self.members[0].runner
        for member in self.further:
            parts = member.runner.report.parts
            parts[part_name(name, member.runner)].replans = self.tries - 1
            runner.report.add(MemoryReport(runner.report.device, parts))

    def denoiser(self, request: DrawRequest) -> GroupDenoiser:
        """A request's model as the samplers see it; the models are on their devices."""
        return GroupDenoiser(self, request)


def part_name(name: str, runner: OffloadRunner) -> str:
    """What a part is called in a report that is on a further device."""
    return f"{name} on {runner.device}"


def group_of(runner: OffloadRunner, requests: Sequence[DrawRequest]) -> DeviceGroup | None:
    """The devices that draw requests together; None where the policy names none.

    Raises ``ValueError`` for devices that are not there.
    """
    devices = devices_of(runner.policy.devices, runner.device)
    return DeviceGroup(runner, requests, devices) if devices else None


class GroupDenoiser:
    """``Denoiser`` over the devices of a group."""

    def __init__(self, group: DeviceGroup, request: DrawRequest) -> None:
        self.drivers = group.drivers
        self.devices = [member.runner.device for member in group.members]
        self.hands = dealt(shares_of(request), len(group.members))
        between = request.between

        def check() -> None:
            self.drivers.check()
            if between is not None:
                between()

        pictures = pictures_of(request)
        #: of each device, by the picture's row
        self.denoisers: list[dict[int, Denoiser]] = []
        for member, hand in zip(group.members, self.hands, strict=False):
            assert member.plan is not None
            keep, device = keeping(member.runner, member.plan), member.runner.device
            own = {}
            for row in dict.fromkeys(share.row for share in hand):
                picture = member.request(pictures[row], check)
                own[row] = picture.denoiser(device, picture.lora_factors(device), keep)
            self.denoisers.append(own)
        #: says of all pictures when and how they are guided
        self.first = self.denoisers[0][0]
        self.compiled = any(map(is_compiled, self.first.bodies))
        #: what steps have read that were compiled; torch's compiler is one device's at a time
        self.known: set[Hashable] = set()
        self.turn = threading.Lock()

    @contextmanager
    def precompute_modulations(self, sigmas: Tensor) -> Iterator[None]:
        """Modulations of all devices for all these sigmas (steps + 1,) are computed now."""

        def compute(stack: ExitStack, own: dict[int, Denoiser]) -> None:
            for denoiser in own.values():
                stack.enter_context(denoiser.precompute_modulations(sigmas))

        stacks = [ExitStack() for _ in self.denoisers]
        try:
            self.drivers.each(
                [partial(compute, *each) for each in zip(stacks, self.denoisers, strict=True)]
            )
            yield
        finally:
            for stack in stacks:
                stack.close()

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The picture (B, C, h, w) that x (B, C, h, w) hides at a sigma."""
        now = float(sigma)
        if now > self.first.zero_sigma:
            return x
        guided = self.first.negative is not None and self.first.guided(now)
        turn = nullcontext()
        if self.compiled and (reads := self.first.reads(now)) not in self.known:
            self.known.add(reads)
            turn = self.turn

        def draw(number: int) -> dict[Share, Tensor]:
            with turn:
                return self.draw(number, x, sigma, guided)

        jobs = [partial(draw, number) for number in range(len(self.hands))]
        seen: dict[Share, Tensor] = {}
        for pictures in self.drivers.each(jobs):
            seen |= pictures
        whole = []
        for row in range(len(x)):
            picture = seen[Share(row)]
            if guided:
                of_row, other = x[row : row + 1], seen[Share(row, negative=True)]
                combine, cfg = self.first.options.combine, self.first.cfg
                picture = combine(of_row, picture, other, cfg)
            whole.append(picture)
        return torch.cat(whole)

    def draw(self, number: int, x: Tensor, sigma: Tensor, guided: bool) -> dict[Share, Tensor]:
        """What a device sees of x (B, C, h, w) in its shares, each (1, C, h, w) on the first."""
        device, seen = self.devices[number], {}
        now, sigma = float(sigma), sigma.to(device)
        for share in self.hands[number]:
            if share.negative and not guided:
                continue
            self.drivers.check()
            denoiser = self.denoisers[number][share.row]
            prompts = denoiser.positive if guided else denoiser.unguided
            if share.negative:
                prompts = denoiser.negative or []
            of_row = x[share.row : share.row + 1].to(device)
            seen[share] = denoiser.picture(of_row, sigma, now, prompts).to(x.device)
        return seen
