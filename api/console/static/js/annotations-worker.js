// Reads a job's GeoJSON off the page's thread and hands it over as flat typed arrays: no object per feature is kept.

const MAX_RINGS = 4_000_000;

onmessage = async ({ data: url }) => {
  try {
    const response = await fetch(url);
    if (!response.ok) throw new Error(response.status === 404 ? "there are no annotations" : `the platform answered ${response.status}`);
    const collection = await response.json();
    const packed = pack(collection.features || []);
    postMessage({ packed }, [packed.points.buffer, packed.pointClass.buffer, packed.coords.buffer, packed.starts.buffer,
      packed.boxes.buffer, packed.ringClass.buffer, packed.ringKind.buffer]);
  } catch (error) {
    postMessage({ error: String(error.message || error) });
  }
};

function pack(features) {
  const classes = [];
  const known = new Map();
  const sizes = { rings: 0, coords: 0, points: 0 };
  const each = (geometry, point, ring) => {
    if (!geometry) return;
    const c = geometry.coordinates;
    switch (geometry.type) {
      case "Point": point(c); break;
      case "MultiPoint": c.forEach(point); break;
      case "LineString": ring(c, 0); break;
      case "MultiLineString": c.forEach((line) => ring(line, 0)); break;
      case "Polygon": c.forEach((r, i) => ring(r, i === 0 && c.length === 1 ? 2 : 1)); break;
      case "MultiPolygon": c.forEach((p) => p.forEach((r, i) => ring(r, i === 0 && p.length === 1 ? 2 : 1))); break;
      case "GeometryCollection": (geometry.geometries || []).forEach((g) => each(g, point, ring)); break;
    }
  };
  for (const feature of features) {
    each(feature.geometry, () => { sizes.points += 1; }, (r) => { sizes.rings += 1; sizes.coords += r.length; });
  }
  if (sizes.rings > MAX_RINGS) throw new Error("there are too many outlines to show; download the GeoJSON instead");
  const points = new Float32Array(2 * sizes.points), pointClass = new Uint16Array(sizes.points);
  const coords = new Float32Array(2 * sizes.coords), starts = new Uint32Array(sizes.rings + 1);
  const boxes = new Float32Array(4 * sizes.rings), ringClass = new Uint16Array(sizes.rings), ringKind = new Uint8Array(sizes.rings);
  let p = 0, r = 0, at = 0;
  for (const feature of features) {
    const properties = feature.properties || {};
    const heat = properties.contour_index !== undefined;
    const of = properties.classification || {};
    const rgb = colorOf(properties.color) || colorOf(of.color) || [0, 114, 178];
    const name = String(of.name || properties.annotation_type || "annotation");
    const key = heat ? `${name}\n${properties.contour_index}\n${rgb}` : `${name}\n${rgb}`;
    let index = known.get(key);
    if (index === undefined) {
      index = classes.length;
      known.set(key, index);
      classes.push({ name: heat ? `${name}, contour ${Number(properties.contour_index) + 1}` : name, rgb, count: 0, heat });
    }
    classes[index].count += 1;
    each(feature.geometry, (c) => {
      points[2 * p] = c[0];
      points[2 * p + 1] = c[1];
      pointClass[p++] = index;
    }, (ring, kind) => {
      starts[r] = at;
      let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity;
      for (const [x, y] of ring) {
        coords[2 * at] = x;
        coords[2 * at + 1] = y;
        at += 1;
        if (x < x0) x0 = x;
        if (x > x1) x1 = x;
        if (y < y0) y0 = y;
        if (y > y1) y1 = y;
      }
      boxes.set([x0, y0, x1, y1], 4 * r);
      ringClass[r] = index;
      ringKind[r++] = kind; // 0 a line, 1 an outline, 2 an area without holes
    });
  }
  starts[r] = at;
  return { points, pointClass, coords, starts, boxes, ringClass, ringKind, classes, features: features.length };
}

function colorOf(value) {
  if (Array.isArray(value) && value.length >= 3) return value.slice(0, 3);
  if (typeof value !== "string") return null;
  const hex = /^#([0-9a-f]{6}|[0-9a-f]{3})$/i.exec(value);
  if (!hex) return null;
  const full = hex[1].length === 3 ? [...hex[1]].map((d) => d + d).join("") : hex[1];
  return [0, 2, 4].map((i) => parseInt(full.slice(i, i + 2), 16));
}
