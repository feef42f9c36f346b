// Turns an image into `pixel_values` with the same numbers as onnx_captioner.py gets from Pillow for the same pixels.

const STRIP = 256; // rows drawn at once: browsers limit the area of a canvas, and memory stays small
const PRECISION_BITS = 22; // of the weights in Pillow's resampling of 8-bit images

/** Pillow's filters by name: how far they reach, in pixels, and their height at a distance. */
export const FILTERS = {
  bilinear: { reach: 1, height: (x) => Math.max(1 - x, 0) },
  bicubic: {
    reach: 2,
    height: (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0),
  },
};

/**
 * Reads an image file as people see it: upright (EXIF), first frame, transparent parts on white.
 *
 * @param {Blob} file
 * @param {object} settings `preprocessing` of captioner.json.
 * @returns {Promise<Float32Array>} (3, height, width)
 * @throws {Error} If the browser cannot decode the file.
 */
export async function preprocess(file, settings) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${file.name || "The file"} is not a photo that this browser can read, or it is damaged.`);
  }
  try {
    const filter = FILTERS[settings.resample];
    const pixels = resize(stripsOf(bitmap), bitmap.width, bitmap.height, settings.width, settings.height, filter);
    return normalise(pixels, settings);
  } finally {
    bitmap.close();
  }
}

/** A function (top, rows) to the RGBA of these rows of the bitmap on white. */
function stripsOf(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, Math.min(STRIP, bitmap.height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  return (top, rows) => {
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, -top);
    return context.getImageData(0, 0, canvas.width, rows).data;
  };
}

/**
 * Pillow's `Image.resize`: a filter that widens as the image shrinks, first across, then down, rounded to 8 bits after
 * each (Pillow's Resample.c).
 *
 * @param {(top: number, rows: number) => Uint8ClampedArray} strip RGBA of some rows of the image.
 * @returns {Uint8Array} (height, width, 3)
 */
export function resize(strip, fromWidth, fromHeight, width, height, filter) {
  const across = windows(fromWidth, width, filter);
  const narrow = new Uint8Array(fromHeight * width * 3); // (fromHeight, width, 3)
  for (let top = 0, at = 0; top < fromHeight; top += STRIP) {
    const rows = Math.min(STRIP, fromHeight - top);
    const rgba = strip(top, rows);
    for (let row = 0; row < rows; row++) {
      for (const { start, weights } of across) {
        const first = (row * fromWidth + start) * 4;
        for (let channel = 0; channel < 3; channel++) narrow[at++] = weighted(rgba, first + channel, 4, weights);
      }
    }
  }
  const pixels = new Uint8Array(height * width * 3);
  let at = 0;
  for (const { start, weights } of windows(fromHeight, height, filter)) {
    for (let column = 0; column < width * 3; column++) {
      pixels[at++] = weighted(narrow, start * width * 3 + column, width * 3, weights);
    }
  }
  return pixels;
}

/** For each pixel of the output: where its input starts, and the input's weights as integers. */
function windows(from, to, filter) {
  const scale = from / to;
  const widening = Math.max(scale, 1);
  const support = filter.reach * widening;
  return Array.from({ length: to }, (_, number) => {
    const centre = (number + 0.5) * scale;
    const start = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), from);
    const heights = Array.from({ length: end - start }, (_, i) =>
      filter.height(Math.abs((i + start - centre + 0.5) * (1 / widening))),
    );
    const sum = heights.reduce((total, weight) => total + weight, 0);
    const weights = Int32Array.from(heights, (height) => {
      const weight = (height / sum) * 2 ** PRECISION_BITS;
      return Math.trunc(weight + (weight < 0 ? -0.5 : 0.5));
    });
    return { start, weights };
  });
}

function weighted(values, first, stride, weights) {
  let sum = 1 << (PRECISION_BITS - 1); // a half, to round
  for (let i = 0, at = first; i < weights.length; i++, at += stride) sum += values[at] * weights[i];
  return Math.min(Math.max(sum >> PRECISION_BITS, 0), 255);
}

function normalise(pixels, { width, height, rescale_factor, mean, std }) {
  const values = new Float32Array(3 * height * width);
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < height * width; i++) {
      const scaled = Math.fround(pixels[i * 3 + channel] * rescale_factor);
      const centred = Math.fround(scaled - Math.fround(mean[channel]));
      values[channel * height * width + i] = centred / Math.fround(std[channel]);
    }
  }
  return values;
}
