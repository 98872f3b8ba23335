"""A diffusion that was trained elsewhere, sampled, scored and compared here."""
