"""What latent diffusion is measured against: models of the same data by other means, of equal size."""
