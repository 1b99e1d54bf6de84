"""How the graphs of ``tools.control_graphs`` are shown."""

from __future__ import annotations

from tools.control_graphs import CONTROLLED
from tools.page import LOAD, POCKET, Page, note


def nag() -> Page:
    return Page(
        note(
            "A negative prompt at cfg 1",
            """The sentence says nothing of the background, and the model makes it white. With FLUX
            NAG the negative prompt takes it away from there. One seed, cfg 1 in both pictures: a
            step with NAG takes little longer, where a cfg above 1 doubles it.""",
            POCKET,
            """the negative prompt: it does most where it says all of what would be drawn otherwise.
            Then `scale` and `alpha`: more of them goes further, until the thing itself changes;
            `end` leaves the details alone. For FLUX.1-dev begin with the node's own values.""",
        ),
        {
            "Load": [*LOAD, ["changed"]],
            "Prompt": [["prompt", "negative", "size"]],
            "Sample": [["sampler", "with"]],
            "Result": [["decode", "decode with"], ["save", "save with"]],
        },
    )


def guidance_options() -> Page:
    return Page(
        note(
            "Guidance over a span",
            """A cfg of 12 tears the star's edges. In the first fifth of the schedule it says as
            much of what is drawn and where, and the details come without it. CFG-Zero* gives the
            negative prediction the length that fits. One seed; steps behind `end` take half the
            time.""",
            POCKET,
            """`end` of the options, and `cfg` of both samplers. `rescale` and `mimic_scale` hold
            the contrast where cfg counts in all steps; of this star they mend less.""",
        ),
        {
            "Load": [*LOAD, ["changed"]],
            "Prompt": [["prompt", "negative", "size"]],
            "Sample": [["sampler", "with"]],
            "Result": [["decode", "decode with"], ["save", "save with"]],
        },
    )


def lora_control() -> Page:
    labels = ("the LoRA alone", *CONTROLLED)
    edits = [f"edit {label}" for label in labels]
    return Page(
        note(
            "Where and when a LoRA counts",
            """One edit, *make it blue*, by one LoRA. The sheet shows the first picture, the LoRA
            alone, and what is left of it without one block, with half of the single blocks, and
            over a part of the schedule. Without the first double block hardly anything changes.""",
            POCKET,
            """`blocks` and `schedule` of a FLUX LoRA Control; another text costs no time. A `mask`
            says where in the picture the LoRA counts: this one, which works on the whole
            reference, shows little of that.""",
        ),
        {
            "Load": [*LOAD, ["lora"]],
            "Prompt": [["prompt", "negative", "size"]],
            "Draw": [["sampler"], ["decode"]],
            "Control": [["instruction"], ["reference", *CONTROLLED]],
            "Edit": [edits[:3], edits[3:]],
            "Result": [[f"decode {label}" for label in labels], ["grid"], ["save"]],
        },
    )


def soft_inpaint() -> Page:
    return Page(
        note(
            "Inpaint without a seam",
            """A thing is drawn into a picture twice. With a hard mask its square shows: the new
            ground has another tint. With a soft mask and FLUX Differential Diffusion the edge is
            drawn later than the middle, FLUX Color Match takes the tint off, and FLUX Keep Pixels
            gives back every pixel outside of the mask, to the bit. Differences are shown 16 times
            as large.""",
            POCKET,
            """the second sentence, and the mask. For a picture of your own wire *Load Image* into
            the place of the drawing and of the soft mask. FLUX Color Match measures where its mask
            is above 0: there both pictures must show the same.""",
        ),
        {
            "Load": [*LOAD, ["differential"]],
            "Prompt": [["prompt", "negative", "size"]],
            "Draw": [["sampler"], ["decode"], ["encode", "save"]],
            "Prompt again": [["other"]],
            "Mask": [
                ["nothing", "everything", "part"],
                ["outside", "hard", "fade"],
                ["soft"],
                ["hard latent", "soft latent"],
            ],
            "Draw again": [["draw hard", "draw soft"], ["decode hard", "decode soft"]],
            "Put back": [["colors"], ["keep hard", "keep soft"]],
            "Result": [
                ["compare hard", "compare soft"],
                ["show hard", "show soft"],
                ["save hard", "save soft"],
            ],
        },
    )


CONTROL_PAGES = (nag, guidance_options, lora_control, soft_inpaint)
