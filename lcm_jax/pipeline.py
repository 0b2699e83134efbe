"""Text to image: a loaded model as one compiled function from token ids and keys to uint8 pixels."""

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from lcm_jax.captions import CaptionEncoder, caption_encoder, encode
from lcm_jax.diffusion.boundary import LCMBoundary, consistency
from lcm_jax.diffusion.field import guided_field, network_field
from lcm_jax.diffusion.guidance import guidance_embedding
from lcm_jax.diffusion.path import vp_path
from lcm_jax.drawers import Drawers
from lcm_jax.image_keys import Keys, image_keys
from lcm_jax.models.autoencoder import autoencoder
from lcm_jax.models.spec import ModelSpec
from lcm_jax.models.tiling import tiled
from lcm_jax.models.unet import unet
from lcm_jax.objectives.base import unconditional
from lcm_jax.parallel.reading import Reading
from lcm_jax.sampling import defaults, few_step, reference
from lcm_jax.sampling.schedule import Schedule, filled
from lcm_jax.setting import UNCROPPED, Setting, SizeIds
from lcm_jax.source import image_networks, in_dtype, open_model
from lcm_jax.typing import Condition, Guidance, Latent, Params

BATCH = 16  # images a call and device at most
PIXELS = 2**20  # of a device's images together, unless one alone has more
OVERLAP = 8  # latent pixels that neighbouring tiles share when an image is decoded in tiles

Pixels = UInt8[Array, "b h w 3"]
Draw = Callable[..., Pixels]


class Pipeline:
    """A model with its weights; call it with prompts, or use `sampler` for compiled sampling of conditions.

    `origin` says where the weights come from (JSON values, kept with the pictures); `read` how layers of the U-Net
    read weights that devices hold in parts; `attention` by which kernel it attends (models.attention.KERNELS).
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: dict[str, Params],
        origin: Mapping[str, Any] | None = None,
        captions: CaptionEncoder | None = None,
        read: Reading | None = None,
        attention: str = "auto",
    ):
        if spec.unet is None:
            raise ValueError("this model is an autoencoder only: it encodes pictures and draws none")
        self.spec, self.params, self.origin = spec, params, dict(origin or {})
        self.path = vp_path(**vars(spec.path))
        self.unet, self.autoencoder = unet(spec.unet, attention), autoencoder(spec.autoencoder)
        self._captions, self.read, self.attention = captions, read, attention
        self._compiled: dict[Any, Draw] = {}

    @classmethod
    def load(
        cls,
        source: str | os.PathLike,
        dtype: str | None = None,
        variant: str | None = None,
        kind: str | None = None,
        attention: str = "auto",
        empty_caption: str | None = None,
    ) -> "Pipeline":
        """The model of a folder (launch.export's or diffusers'), a file, a hub name or a shipped one ("emoji-teacher").

        `dtype` is what the U-Net is kept and computed in ("bfloat16" on accelerators; by default kept in float32 and
        computed as it was trained); `variant` ("fp16") chooses among a diffusers folder's files, `kind` ("v") is
        what a single file predicts, `attention` the kernel (models.attention.KERNELS), `empty_caption` ("zeros" or
        "encoded") what a model with CLIP takes for it, instead of what it says itself. Raises FileNotFoundError or
        ValueError saying what is wrong.
        """
        model = open_model(source, variant, kind, empty_caption)
        if not isinstance(model.spec, ModelSpec):
            raise ValueError(f"{source} is a network of noise levels: open it with lcm_jax.edm_pipeline.EDMPipeline")
        spec = model.spec if dtype is None else model.spec.computing_in(dtype)
        kept = {"unet": dtype or "float32", "autoencoder": "float32"}
        given = {"dtype": dtype, "variant": variant, "kind": kind, "empty_caption": empty_caption}
        origin = {"model": str(source), **model.trained, **{k: v for k, v in given.items() if v is not None}}
        pipe = cls(spec, {}, origin, model.captions, attention=attention)  # refuses before weights are read
        pipe.params = {name: model.load(name, in_dtype(kept[name])) for name in image_networks(spec)}
        return pipe

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str | None = None,
        steps: int | None = None,
        w: float | None = None,
        seed: int = 0,
        n: int = 1,
        sampler: str | None = None,
        size: tuple[int, int] | int | None = None,
        image: UInt8[np.ndarray, "h w 3"] | None = None,
        strength: float = 0.6,
        tile: int | None = None,
        ids: SizeIds = UNCROPPED,
        batch: int | None = None,
        first: Sequence[int] | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Images uint8 [len(prompts) * n, H, W, 3], the n images of a prompt side by side.

        `w` is LCM's guidance (others' scale - 1), by default `default_w`; `size` is (height, width) or a side. The i-th
        picture of a prompt is the same whatever else is drawn; `first` is the i of each prompt's first one, by default
        0 and, for a prompt named again, what follows (`firsts`). `image` is changed by `strength` in (0, 1] instead of
        drawing from nothing; `ids` is what SDXL is told of sizes. Raises ValueError for no prompt, an unknown sampler,
        impossible steps or sizes.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or n < 1:
            raise ValueError(f"nothing to draw: {len(prompts)} prompts, {n} images of each")
        w = self.default_w if w is None else w
        size = (size, size) if isinstance(size, int) else size
        self.check_guidance(w, negative_prompt)
        if image is not None:
            size = size or image.shape[:2]
            if tuple(size) != image.shape[:2]:
                raise ValueError(f"the image is {image.shape[:2]}, size {tuple(size)}: resize it, or leave size out")
        setting = self.setting(sampler, steps, size, None if image is None else strength, tile, ids, w)
        compiled = self.from_tokens(setting)
        empty = self.captions.tokens([negative_prompt or ""])
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}  # what is cut is said once
        told = self.captions.tokens(list(place))[[place[prompt] for prompt in prompts]]
        tokens, keys = np.repeat(told, n, axis=0), image_keys(prompts, n, seed, first)
        each_w = np.full(len(tokens), w, np.float32)
        changed = () if image is None else (np.broadcast_to(image, (len(tokens), *image.shape)),)
        params = self.drawers.params
        draw = lambda tokens, *rest: compiled(params, self.text, tokens, empty, *rest)
        size = self.at_once(setting, batch, len(tokens))
        bar = tqdm(total=len(tokens), unit="image", desc=setting.sampler, disable=not progress, dynamic_ncols=True)
        with bar:
            return self.drawers.map(draw, (tokens, each_w, keys, *changed), size, bar.update)

    def at_once(self, setting: Setting, batch: int | None, total: int) -> int:
        """Pictures of a call of the compiled function: `batch` a device, by default what its memory surely holds."""
        return self.drawers.size(batch or max(1, min(BATCH, PIXELS // (setting.height * setting.width))), total)

    @cached_property
    def drawers(self) -> Drawers:
        """The devices that draw, with the weights of the networks."""
        return Drawers(self.params)

    @cached_property
    def text(self) -> Any:
        """The weights of the text encoders on all devices that draw; None where they are no networks of ours."""
        return self.drawers.with_all(self.captions.params)

    @property
    def default_sampler(self) -> str:
        """"lcm" for a consistency model, "ddim" for a teacher."""
        return "lcm" if self.spec.role == "consistency" else "ddim"

    @property
    def default_steps(self) -> int:
        """How many where a call names none; see sampling.defaults."""
        return defaults.default_steps(self.spec.to_json())

    @property
    def default_w(self) -> float:
        """Guidance where a call names none; see sampling.defaults."""
        return defaults.default_w(self.spec.to_json())

    @cached_property
    def captions(self) -> CaptionEncoder:
        """What the model reads captions through."""
        return self._captions or caption_encoder(self.spec.text)

    def encode(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """The condition of captions, {"context": [b, l, d][, "pooled": [b, p]]}."""
        return encode(self.captions, captions)

    @cached_property
    def uncond(self) -> dict[str, Array]:
        """The condition of the empty caption, {"context": [l, d][, "pooled": [p]]}."""
        return {k: jnp.asarray(v[0]) for k, v in self.encode([""]).items()}

    def check_guidance(self, w: float, negative_prompt: str | None = None) -> None:
        """Warns of a w outside the range a consistency model was trained on, and of what has no effect.

        Raises ValueError for a w that is not finite.
        """
        if not math.isfinite(w):
            raise ValueError(f"w must be a finite number, got {w}")
        g = self.spec.guidance
        if g is not None and not g.w_min <= w <= g.w_max:
            warnings.warn(
                f"w = {w:g} is outside the trained range [{g.w_min:g}, {g.w_max:g}]; expect poor images",
                stacklevel=3,
            )
        if negative_prompt and (w == 0 or self.spec.unet.w_width is not None):
            why = "w is 0" if self.spec.unet.w_width is None else "guidance was distilled into this model"
            warnings.warn(f"the negative prompt has no effect: {why}", stacklevel=3)

    def setting(
        self,
        sampler: str | None = None,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        strength: float | None = None,
        tile: int | None = None,
        ids: SizeIds = UNCROPPED,
        w: float | None = None,
    ) -> Setting:
        """The setting with defaults filled in; ValueError if the model cannot be sampled so.

        One for a w of 0 is for no other: it saves half the evaluations of a network that has no input for w.
        """
        name = sampler or self.default_sampler
        can = ("lcm",) if self.spec.role == "consistency" else reference.SAMPLERS
        if name not in can:
            raise ValueError(f"a {self.spec.role} model is not sampled with {name!r}; choose {', '.join(can)}")
        side = self.spec.image_size
        height, width = (side, side) if size is None else size
        steps, guided = self.default_steps if steps is None else steps, self.spec.unet.w_width is None and w != 0
        made = Setting(name, steps, height, width, strength, tile, ids, guided)
        self.spec.latents_of(height, width)
        if tile is not None and tile // self.spec.autoencoder.factor <= 2 * OVERLAP:
            least = (2 * OVERLAP + 1) * self.spec.autoencoder.factor
            raise ValueError(f"tiles of {tile} pixels are too small: give {least} or more")
        if ids != UNCROPPED and self.spec.unet.added_width is None:
            raise ValueError("original size, crop and target size are told to SDXL's networks, this one takes none")
        self.times(made)
        return made

    def times(self, setting: Setting) -> np.ndarray:
        """The falling times of a sampler; ValueError if there cannot be as many."""
        strength = 1.0 if setting.strength is None else setting.strength
        if setting.sampler == "lcm":
            return few_step.lcm_times(setting.steps, self.path.T, self.spec.original_steps, strength)
        if not 0 < strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {strength}")
        walked = int(setting.steps * strength)
        if walked < 1:
            raise ValueError(f"{setting.steps} steps at strength {strength:g} are none: give more of one of them")
        return reference.sampler_times(setting.sampler, setting.steps, self.path.T)[setting.steps - walked :]

    def sampler(self, name: str, steps: int, **more: Any) -> Draw:
        """The compiled draw(params, condition, uncond, w [b], keys [b][, image]) -> uint8 pixels.

        `more` are `setting`'s; `condition` has a leading [b], `uncond` has none. One key in the place of `keys` is
        split. Compiled once for every number of steps. Raises ValueError as `setting` does.
        """
        setting = self.setting(name, steps, **more)
        return self._compile("conditions", setting, partial(self.draw, setting))

    def from_tokens(self, setting: Setting) -> Draw:
        """The compiled draw(params, text, tokens, empty tokens, w, keys[, image]) -> uint8 pixels."""

        def draw(schedule, params, text, tokens, empty, *rest):
            uncond = {k: v[0] for k, v in self.captions.states(text, empty).items()}
            return self.draw(setting, schedule, params, self.captions.states(text, tokens), uncond, *rest)

        return self._compile("tokens", setting, draw)

    def _compile(self, of: str, setting: Setting, draw: Draw) -> Draw:
        """draw(schedule, ..) compiled, or what was for a setting that asks for other times only, at these times."""
        key = (of, replace(setting, steps=0, strength=None))
        if key not in self._compiled:
            self._compiled[key] = jax.jit(draw)
        return partial(self._compiled[key], filled(self.times(setting)))

    def nfe(self, setting: Setting) -> int:
        """Network evaluations of one image; guided ones count twice."""
        times = self.times(setting)
        if setting.sampler == "lcm":
            return len(times) * (2 if setting.guided else 1)
        return reference.nfe(setting.sampler, len(times) - 1, setting.guided)

    def draw(
        self,
        setting: Setting,
        schedule: Schedule,
        params: dict[str, Params],
        condition: Condition,
        uncond: Mapping[str, Array],
        w: Guidance,
        keys: Array,
        image: Pixels | None = None,
    ) -> Pixels:
        """Pictures of conditions, each by its own key, at the times of a schedule. To be compiled.

        `image` holds those to be changed.
        """
        keys = keys if keys.ndim else jax.random.split(keys, len(w))
        told = self.sized(condition, setting)
        start = None if image is None else self.encode_image(params, image, setting.tile)
        noise = self.noise(setting, keys)
        z = self.latents(setting, params["unet"], told, unconditional(told, uncond), w, noise, start, schedule)
        return to_pixels(self.decode(params, z, setting.tile))

    def sized(self, condition: Condition, setting: Setting) -> Condition:
        """The condition with SDXL's size ids, by default of an uncropped picture, where the network takes them."""
        if self.spec.unet.added_width is None or "time_ids" in condition:
            return condition
        ids = jnp.array(setting.ids.of(setting.height, setting.width), jnp.float32)
        return {**condition, "time_ids": jnp.broadcast_to(ids, (len(condition["context"]), 6))}

    def noise(self, setting: Setting, keys: Keys) -> few_step.StepNoise:
        """Every image's unit noise from its own key: new in each step of a consistency model, one for a teacher."""
        shape = self.spec.latents_of(setting.height, setting.width)
        if setting.sampler == "lcm":
            return few_step.fresh(keys, shape)
        return lambda i: jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    def latents(
        self,
        setting: Setting,
        params: Params,
        told: Condition,
        empty: Condition,
        w: Guidance,
        noise: few_step.StepNoise,
        start: Latent | None = None,
        schedule: Schedule | None = None,
    ) -> Latent:
        """Latents in diffusion units by multistep consistency sampling (LCM Alg. 3), or a guided teacher's trajectory.

        `noise` gives that of a step, `start` holds latents to be changed, `schedule` times in the place of the
        setting's. A student without an input for w (LCM-LoRA) is guided from outside, by
        `setting` or not.
        """
        net, kind = partial(self.unet.apply, params, read=self.read), self.spec.kind
        times, count = schedule or Schedule(self.times(setting), None)
        if setting.guided:
            field = guided_field(self.path, kind, net, told, empty, w)
        else:
            width = self.spec.unet.w_width
            features = {} if width is None else {"w_features": guidance_embedding(w, width)}
            field = network_field(self.path, kind, partial(net, **told, **features))
        if setting.sampler == "lcm":
            f = consistency(self.path, LCMBoundary(self.spec.timestep_scaling), field)
            return few_step.sample(f, self.path, noise, times, count, start=start)
        return reference.sample(setting.sampler, self.path, field, noise(0), times, count, start=start)

    def encode_image(self, params: dict[str, Params], image: Pixels, tile: int | None = None) -> Latent:
        """The latents of pictures in diffusion units, posterior means; in tiles of `tile` pixels a side where given."""
        encode = partial(self.autoencoder.apply, params["autoencoder"], method="encode")
        moments = self.in_tiles(encode, image.astype(jnp.float32) / 127.5 - 1.0, tile, self.spec.autoencoder.factor)
        return jnp.split(moments, 2, axis=-1)[0] * self.spec.autoencoder.scale

    def decode(self, params: dict[str, Params], z: Latent, tile: int | None = None) -> Float[Array, "b h w 3"]:
        """Latents in diffusion units to images in [-1, 1], in tiles of `tile` pixels a side where given."""
        decode = partial(self.autoencoder.apply, params["autoencoder"], method="decode")
        return self.in_tiles(decode, z / self.spec.autoencoder.scale, tile, 1)

    def in_tiles(self, apply: Callable[[Array], Array], x: Array, tile: int | None, unit: int) -> Array:
        """`apply` to all of x, or to tiles of `tile` pixels of a picture; `unit` pixels of x are one of a latent."""
        if tile is None:
            return apply(x)
        return tiled(apply, x, tile // self.spec.autoencoder.factor * unit, OVERLAP * unit)


def to_pixels(image: Float[Array, "b h w 3"]) -> Pixels:
    """Images in [-1, 1] to uint8, rounded."""
    return jnp.clip(jnp.round((image + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
