"""podman and Docker behind the port `mhs_ray.ports.ContainerEngine`; start with `mhs_ray.engines.select.pick_engine`."""
