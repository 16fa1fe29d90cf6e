"""Proofs on H200 GPUs: configs, loads and the script that runs them part by part."""
