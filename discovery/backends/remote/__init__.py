"""NDIF: a backend whose forward passes run on a remote server."""
