"""Environment, images and servers: the demo on one machine, compose on one host, Kubernetes on a cluster."""
