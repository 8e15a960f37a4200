"""Where a policy comes from: the hub, a folder, or the model that ships with nsr."""
