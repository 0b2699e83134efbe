"""Text to image: a loaded model as one compiled function from context and keys to uint8 pixels."""

import math
import os
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped, UInt8
from tqdm import tqdm

from lcm_jax.captions import caption_encoder
from lcm_jax.diffusion.boundary import LCMBoundary, consistency
from lcm_jax.diffusion.field import guided_field, network_field
from lcm_jax.diffusion.guidance import guidance_embedding
from lcm_jax.diffusion.path import vp_path
from lcm_jax.models.autoencoder import autoencoder
from lcm_jax.models.spec import ModelSpec
from lcm_jax.models.unet import unet
from lcm_jax.sampling import few_step, reference
from lcm_jax.typing import Context, Guidance, Latent, Params
from lcm_jax.weights import folder

ASSETS = Path(__file__).parent / "assets"
NETWORKS = ("unet", "autoencoder")
BATCH = 16  # images a call; the last call is padded, so that one compilation serves all

Pixels = UInt8[Array, "b h w 3"]
Keys = Key[Array, " b"]  # one an image: a picture depends on its own key, not on its neighbours
Draw = Callable[..., Pixels]


class Pipeline:
    """A model with its weights; call it with prompts, or use `sampler` for compiled sampling of contexts.

    `origin` says where the weights come from (JSON values, kept with the pictures).
    """

    def __init__(self, spec: ModelSpec, params: dict[str, Params], origin: Mapping[str, Any] | None = None):
        if spec.unet is None:
            raise ValueError("this model is an autoencoder only: it encodes pictures and draws none")
        self.spec, self.params, self.origin = spec, params, dict(origin or {})
        self.path = vp_path(**vars(spec.path))
        self.unet, self.autoencoder = unet(spec.unet), autoencoder(spec.autoencoder)
        self._compiled: dict[tuple[str, int], Draw] = {}

    @classmethod
    def load(cls, source: str | os.PathLike) -> "Pipeline":
        """The model of a folder that launch.export wrote, or a shipped one by name ("emoji-teacher").

        Raises FileNotFoundError or ValueError saying what is wrong with the folder.
        """
        where = model_folder(source)
        spec = ModelSpec.from_json(folder.describe(where), str(where / folder.DESCRIPTION))
        names = [name for name in NETWORKS if getattr(spec, name) is not None]
        return cls(spec, {name: load_params(where, name, spec) for name in names}, {"model": str(source)})

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int | None = None,
        w: float | None = None,
        seed: int = 0,
        n: int = 1,
        sampler: str | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Images uint8 [len(prompts) * n, H, W, 3], the n images of a prompt side by side.

        `w` is LCM's guidance (others' scale - 1), by default `default_w`. A prompt's i-th picture is the same
        whatever else is drawn. Raises ValueError for no prompt, an unknown sampler or impossible steps.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or n < 1:
            raise ValueError(f"nothing to draw: {len(prompts)} prompts, {n} images of each")
        name = sampler or self.default_sampler
        draw = self.sampler(name, self.default_steps if steps is None else steps)
        w = self.default_w if w is None else w
        self.check_guidance(w)
        context = np.repeat(self.encode(prompts), n, axis=0)
        keys = image_keys(prompts, n, seed)
        total, batch = len(context), min(BATCH, len(context))
        images = []
        with tqdm(total=total, unit="image", desc=name, disable=not progress, dynamic_ncols=True) as bar:
            for start in range(0, total, batch):
                index = np.minimum(np.arange(start, start + batch), total - 1)  # the last image fills up
                some = draw(self.params, jnp.asarray(context[index]), self.uncond, jnp.full(batch, w), keys[index])
                images.append(np.asarray(some)[: total - start])
                bar.update(len(images[-1]))
        return np.concatenate(images)

    @property
    def default_sampler(self) -> str:
        """"lcm" for a consistency model, "ddim" for a teacher."""
        return "lcm" if self.spec.role == "consistency" else "ddim"

    @property
    def default_steps(self) -> int:
        """4 for a consistency model (fewer if it was trained at fewer times), 50 for a teacher."""
        return min(4, self.spec.original_steps) if self.spec.role == "consistency" else 50

    @property
    def default_w(self) -> float:
        """The middle of the range a consistency model was trained on; 2 for a teacher."""
        g = self.spec.guidance
        return 2.0 if g is None else (g.w_min + g.w_max) / 2

    @cached_property
    def encode(self) -> Any:
        """captions -> context [b, l, d]."""
        return caption_encoder(self.spec.text)

    @cached_property
    def uncond(self) -> Array:
        """Context [l, d] of the empty caption."""
        return jnp.asarray(self.encode([""])[0])

    def check_guidance(self, w: float) -> None:
        """Warns when w lies outside the range a consistency model was trained on; ValueError if not finite."""
        if not math.isfinite(w):
            raise ValueError(f"w must be a finite number, got {w}")
        g = self.spec.guidance
        if g is not None and not g.w_min <= w <= g.w_max:
            warnings.warn(
                f"w = {w:g} is outside the trained range [{g.w_min:g}, {g.w_max:g}]; expect poor images",
                stacklevel=3,
            )

    def sampler(self, name: str, steps: int) -> Draw:
        """The compiled draw(params, context [b, l, d], uncond [l, d], w [b], keys [b]) -> uint8 pixels.

        One key in the place of `keys` is split. Kept for the next call with the same name and steps.
        Raises ValueError if the model cannot be sampled so, or the number of steps is out of range.
        """
        can = ("lcm",) if self.spec.role == "consistency" else reference.SAMPLERS
        if name not in can:
            choices = ", ".join(can)
            raise ValueError(f"a {self.spec.role} model is not sampled with {name!r}; choose {choices}")
        if (name, steps) not in self._compiled:
            if name == "lcm":
                times = few_step.lcm_times(steps, self.path.T, self.spec.original_steps)
                latents = partial(self.consistency_latents, times)
            else:
                latents = partial(self.teacher_latents, name, reference.sampler_times(name, steps, self.path.T))

            def draw(params, context, uncond, w, keys):
                keys = keys if keys.ndim else jax.random.split(keys, len(context))
                return to_pixels(self.decode(params, latents(params["unet"], context, uncond, w, keys)))

            self._compiled[name, steps] = jax.jit(draw)
        return self._compiled[name, steps]

    def nfe(self, name: str, steps: int) -> int:
        """Network evaluations of one image; a guided teacher's count twice."""
        return steps if name == "lcm" else reference.nfe(name, steps, guided=True)

    def consistency_latents(
        self,
        times: Shaped[np.ndarray, " n"],
        params: Params,
        context: Context,
        uncond: Float[Array, "l d"],
        w: Guidance,
        keys: Keys,
    ) -> Latent:
        """Multistep consistency sampling (LCM Alg. 3), the noise of every image from its own key."""
        net = partial(self.unet.apply, params)
        features = guidance_embedding(w, self.spec.unet.w_width)

        def one(context, features, key):
            field = network_field(self.path, self.spec.kind, net, context[None], features[None])
            f = consistency(self.path, LCMBoundary(self.spec.timestep_scaling), field)
            return few_step.sample(f, self.path, key, (1, *self.spec.latent_shape), times)[0]

        return jax.vmap(one)(context, features, keys)

    def teacher_latents(
        self,
        name: str,
        times: Shaped[np.ndarray, " n"],
        params: Params,
        context: Context,
        uncond: Float[Array, "l d"],
        w: Guidance,
        keys: Keys,
    ) -> Latent:
        """A guided teacher's trajectory, its noise from each image's key."""
        both = jnp.broadcast_to(uncond, context.shape)
        field = guided_field(self.path, self.spec.kind, partial(self.unet.apply, params), context, both, w)
        noise = jax.vmap(lambda key: jax.random.normal(key, self.spec.latent_shape))(keys)
        return reference.sample(name, self.path, field, noise, times)

    def decode(self, params: dict[str, Params], z: Latent) -> Float[Array, "b h w 3"]:
        """Latents in diffusion units to images in [-1, 1]."""
        return self.autoencoder.apply(params["autoencoder"], z / self.spec.autoencoder.scale, method="decode")


def image_keys(prompts: Sequence[str], n: int, seed: int) -> Keys:
    """A key for each of n images of each prompt: decided by seed, prompt and number alone."""
    root = jax.random.key(seed)
    prompt = np.repeat(np.array([zlib.crc32(p.encode()) for p in prompts], np.uint32), n)
    number = np.tile(np.arange(n, dtype=np.uint32), len(prompts))
    return jax.vmap(lambda p, i: jax.random.fold_in(jax.random.fold_in(root, p), i))(prompt, number)


def to_pixels(image: Float[Array, "b h w 3"]) -> Pixels:
    """Images in [-1, 1] to uint8, rounded."""
    return jnp.clip(jnp.round((image + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def model_folder(source: str | os.PathLike) -> Path:
    """The folder of a model given by path or by the name of a shipped one; FileNotFoundError lists them."""
    shipped = {path.parent.name: path.parent for path in sorted(ASSETS.glob(f"*/{folder.DESCRIPTION}"))}
    if not Path(source).exists() and str(source) not in shipped:
        names = ", ".join(shipped) or "none are shipped"
        raise FileNotFoundError(f"no model folder {str(source)!r}; give a path, or one of: {names}")
    return Path(source) if Path(source).exists() else shipped[str(source)]


def load_params(where: Path, name: str, spec: ModelSpec) -> Params:
    """One network's weights as float32 arrays, checked against the network the spec describes."""
    config = getattr(spec, name)
    net = {"unet": unet, "autoencoder": autoencoder}[name](config)
    return fitting(folder.tree(where, name), net.abstract(), f"{where}/{name}.safetensors")


def fitting(tree: Params, abstract: Params, source: str) -> Params:
    """`tree` as float32 arrays in the shape of `abstract`; ValueError names the first leaf that differs."""
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    found = {name(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}
    wanted = {name(k): v for k, v in jax.tree_util.tree_leaves_with_path(abstract)}
    for key, leaf in wanted.items():
        if key not in found:
            raise ValueError(f"{source} lacks {key}: these weights belong to another network")
        if found[key].shape != leaf.shape:
            raise ValueError(f"{source}: {key} is {found[key].shape}, the network wants {leaf.shape}")
    if extra := sorted(set(found) - set(wanted)):
        raise ValueError(f"{source} holds {extra[0]}, which the network does not have")
    return jax.tree.map(lambda leaf, value: jnp.asarray(value, leaf.dtype), abstract, tree)
