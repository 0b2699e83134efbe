"""What a Frechet distance may be called: FID for one network, and only at numbers that FID was defined for."""

NETWORK = "Inception"
# The TTUR authors, who defined FID (arXiv 1706.08500): below this many images it underestimates the generator.
IMAGES = 10_000


def frechet_name(network: str, generated: int, real: int) -> str:
    """ "FID" for Inception features of at least 10,000 images on either side, else "FD-" and the network."""
    return "FID" if network == NETWORK and min(generated, real) >= IMAGES else f"FD-{network}"


def why(network: str, generated: int, real: int) -> str:
    """Half a sentence on that name, for the head of a table."""
    if network != NETWORK:
        return f"no FID, which looks through {NETWORK}"
    if min(generated, real) < IMAGES:
        return f"no FID, which wants {IMAGES:,} images on either side; the distance rises as they become fewer"
    return "Inception of 2015, TensorFlow 1 bilinear resize"
