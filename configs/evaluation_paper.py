"""The protocol of the LCM paper's tables (arXiv 2310.04378): 30,000 pictures of 10,000 prompts at w = 8.

    python -m launch.score --config configs/evaluation_paper.py --model LCM --teacher TEACHER \\
        --prompts prompts.txt --real PICTURES --config.clip=CLIP --out scores

Expected of an LCM distilled from SD 2.1-base at 512 px, at 1, 2, 4, 8 steps: FID 35.36, 13.31, 11.10, 11.84 and CLIP
score 24.14, 27.83, 28.69, 28.84. FID looks through the Inception of 2015, CLIP score through OpenCLIP's ViT-g/14.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """w is the paper's, cond + w (cond - uncond): what other software calls guidance scale 9."""
    c = ConfigDict()
    c.prompts = 10_000  # the first of --prompts, a line each: captions of pictures that no training saw
    c.samples = 3  # pictures a prompt
    c.seed = 0
    c.w = 8.0
    c.student = dict(steps=(1, 2, 4, 8))
    c.teacher = dict(samplers=("ddim", "dpm_solver", "dpm_solver_pp"), steps=(1, 2, 4, 8), w=8.0)
    c.features = "inception"  # "inception=FOLDER" with weights of one's own
    c.clip = config_dict.placeholder(str)  # folder of a CLIP as Hugging Face saves it; the paper's is a ViT-g/14
    return c
