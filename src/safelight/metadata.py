"""What a picture says of itself: how it was made, in AUTOMATIC1111's words, and always that a model made it."""

from __future__ import annotations

from safelight import __version__
from safelight.params import GenerationParams, MetadataLevel

SOFTWARE_VERSION = __version__
SOFTWARE = f"Safelight {__version__}"

TRAINED_ALGORITHMIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def parameters_text(params: GenerationParams, seed: int, model: str, level: MetadataLevel | None = None) -> str:
    """The text that AUTOMATIC1111 writes, which many programs read; ``minimal`` leaves the prompts out.

    CFG scale is that of true classifier-free guidance; FLUX's own guidance has Forge's name for it.
    """
    lines = []
    if (level or params.metadata) is MetadataLevel.FULL:
        lines.append(prompt_with_tags(params))
        if params.negative_prompt:
            lines.append(f"Negative prompt: {params.negative_prompt}")
    facts: dict[str, object] = {
        "Steps": params.num_inference_steps,
        "Sampler": "Euler",
        "Schedule type": "Simple",
        "CFG scale": f"{params.true_cfg_scale:g}",
        "Seed": seed,
        "Size": f"{params.width}x{params.height}",
        "Model": model,
        "Version": SOFTWARE,
    }
    if params.loras and not lines:
        facts["LoRA"] = "; ".join(map(str, params.loras))
    if params.guidance_scale is not None:
        facts["Distilled CFG Scale"] = f"{params.guidance_scale:g}"
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
    return "\n".join(lines)


def prompt_with_tags(params: GenerationParams) -> str:
    """The prompt with its adapters, as AUTOMATIC1111 has them in it."""
    return " ".join([params.prompt, *(f"<lora:{lora}>" for lora in params.loras)]).strip()


def xmp_packet() -> str:
    """IPTC's statement that the picture was made by a trained model, for the EU's AI Act, Article 50(2), and others."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        f'Iptc4xmpExt:DigitalSourceType="{TRAINED_ALGORITHMIC_MEDIA}" xmp:CreatorTool="{SOFTWARE}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
