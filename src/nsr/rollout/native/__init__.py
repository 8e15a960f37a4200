"""The local engine: the policy itself samples, in this process."""
