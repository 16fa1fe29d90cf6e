"""What is served: configs, sizing, engines, replicas, directory and gateway."""
