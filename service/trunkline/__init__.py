"""Trunkline: the self-hosted gRPC control plane for SIP trunks."""
