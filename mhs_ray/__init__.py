"""mhs-ray: a Model Hosting Service for digital pathology on Ray.

Reading order: ``domain.states`` → ``domain.models`` → ``ports`` → ``services`` → ``dispatch`` → ``attempt``.
"""

__version__ = "0.1.0"
