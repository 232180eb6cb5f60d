"""podman and Docker behind the port `mhs_ray.ports.ContainerEngine`; start with `engines.select.pick_engine`."""
