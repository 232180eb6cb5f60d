"""What a table of features places on the slide, as shapely geometries and GeoDataFrames.

Coordinates are level-0 pixels of the scan, x to the right, y down, origin at the top left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mhs_ray.client.errors import MissingExtraError

if TYPE_CHECKING:
    import geopandas
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

_EXTRA: Final = "geo"


def to_shapely(features: pa.Table) -> NDArray[np.object_]:
    """Return the `geometry` column as an array of shapely geometries; None where a feature has no place.

    Raises MissingExtraError where shapely is not installed.
    """
    try:
        import shapely
    except ImportError:
        raise MissingExtraError("shapely", _EXTRA) from None
    found: NDArray[np.object_] = shapely.from_wkb(features["geometry"].to_numpy())
    return found


def to_geodataframe(features: pa.Table) -> geopandas.GeoDataFrame:
    """Return the table as a GeoDataFrame without a coordinate reference system: pixels are no place on Earth.

    Raises MissingExtraError where GeoPandas is not installed.
    """
    try:
        import geopandas
    except ImportError:
        raise MissingExtraError("geopandas", _EXTRA) from None
    geometry = to_shapely(features)
    return geopandas.GeoDataFrame(features.drop_columns(["geometry"]).to_pandas(), geometry=geometry, crs=None)
