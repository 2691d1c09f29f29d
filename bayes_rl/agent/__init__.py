"""The agent: a LightningModule that owns the variational actor-critic and the ELBO + EWC loss."""
