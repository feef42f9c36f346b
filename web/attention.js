// Draws where the network looked before a word as light on the image, as showattend/attention does.

const SIDE = 56; // pixels of the light's canvas; the browser stretches it smoothly
const AMBER = [255, 176, 32];
const NIGHT = [12, 10, 8];

/**
 * Draws night where the network did not look and a warm glow where it did.
 *
 * @param {HTMLCanvasElement} canvas Lies over the whole image.
 * @param {number[]} grid (rows * columns), the attention on each cell.
 */
export function drawLight(canvas, grid, rows, columns) {
  canvas.width = canvas.height = SIDE;
  const light = lightOf(grid, rows, columns);
  const image = new ImageData(SIDE, SIDE);
  light.forEach((share, i) => {
    const colour = AMBER.map((warm, channel) => share * warm + (1 - share) * NIGHT[channel]);
    image.data.set([...colour, 255 * (0.1 * share + 0.8 * (1 - share))], i * 4);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/**
 * How bright the light is on SIDE x SIDE points: the attention beyond what every cell got, from 0 where the network
 * looked least to 1 where it looked most; dimmer if the attention is spread almost evenly.
 */
function lightOf(grid, rows, columns) {
  const least = Math.min(...grid);
  const beyond = grid.map((weight) => weight - least);
  const down = splines(rows);
  const across = splines(columns);
  const light = down.flatMap((rowShares) =>
    across.map((columnShares) => {
      let sum = 0;
      for (const [row, a] of rowShares) for (const [column, b] of columnShares) sum += a * b * beyond[row * columns + column];
      return sum;
    }),
  );
  const mean = grid.reduce((sum, weight) => sum + weight, 0) / grid.length;
  const strength = Math.min(Math.max(...beyond) / mean, 1);
  const peak = Math.max(...light) || 1;
  return light.map((value) => (value * strength) / peak);
}

/** For each of SIDE points along a row of cells: [cell, share] by a cubic B-spline, reflected at the border. */
function splines(cells) {
  return Array.from({ length: SIDE }, (_, point) => {
    const place = ((point + 0.5) / SIDE) * cells;
    const nearest = Math.floor(place);
    return [-2, -1, 0, 1, 2].map((offset) => {
      const distance = Math.abs(nearest + offset + 0.5 - place);
      const share = distance < 1 ? 2 / 3 - distance ** 2 + distance ** 3 / 2 : Math.max(2 - distance, 0) ** 3 / 6;
      const mirrored = (nearest + offset + 4 * cells) % (2 * cells);
      return [Math.min(mirrored, 2 * cells - 1 - mirrored), share];
    });
  });
}
