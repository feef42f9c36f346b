// The captioner that `showattend export-onnx` wrote, as onnx_captioner.py runs it: the same graphs, searches and words.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { FILTERS, preprocess } from "./preprocess.js";

const RUNTIME = new URL("runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href;

export class OnnxCaptioner {
  constructor(settings, encoder, decoder) {
    Object.assign(this, { settings, encoder, decoder });
  }

  /**
   * Downloads a captioner, and ONNX Runtime with it.
   *
   * @param {string} folder Its URL; ends with a slash.
   * @param {(loaded: number, total: number) => void} onProgress Bytes.
   * @throws {Error} With a sentence for the visitor.
   */
  static async load(folder, onProgress) {
    const response = await fetchFile(`${folder}captioner.json`);
    let settings, names;
    try {
      settings = await response.json();
      [names] = Object.values(settings.files);
    } catch {
      throw new Error("The model's captioner.json is damaged: build the page again.");
    }
    const { resample } = settings.preprocessing;
    if (!(resample in FILTERS)) {
      throw new Error(`This page can resize photos by ${Object.keys(FILTERS).join(" or ")}; the model needs ${resample}.`);
    }
    const urls = [RUNTIME, `${folder}${names.encoder}`, `${folder}${names.decoder}`];
    const [runtime, ...graphs] = await download(urls, (loaded) => onProgress(loaded, settings.bytes));
    ort.env.wasm.wasmBinary = runtime;
    ort.env.wasm.numThreads = 1; // more threads need headers that static servers do not send
    const sessions = [];
    for (const graph of graphs) {
      try {
        sessions.push(await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], logSeverityLevel: 3 }));
      } catch (error) {
        console.error(error);
        throw new Error("The model cannot be started: its files are damaged, or this browser lacks memory for it.");
      }
    }
    return new OnnxCaptioner(settings, ...sessions);
  }

  /**
   * Captions an image as Python's OnnxCaptioner does.
   *
   * @param {Blob} image An image file.
   * @param {number} [numBeams] 1 for greedy search, more for beam search; else as captioner.json says.
   * @returns {Promise<{text: string, words: string[], grids: number[][]}>} For each word its attention on the cells of
   *   the grid, row by row; it sums to one.
   * @throws {Error} If the image cannot be read, with a sentence for the visitor.
   */
  async caption(image, numBeams = this.settings.generation.num_beams) {
    const { preprocessing, generation } = this.settings;
    const pixels = await preprocess(image, preprocessing);
    const { values, keys, h, c } = await this.encoder.run({
      pixel_values: new ort.Tensor("float32", pixels, [1, 3, preprocessing.height, preprocessing.width]),
    });
    // All captions belong to one image and share its grid, so the graph's first dimension is 1.
    const step = async (tokenIds, states) => {
      const shape = [1, tokenIds.length, this.settings.decoder_dim];
      const outputs = await this.decoder.run({
        input_ids: new ort.Tensor("int64", BigInt64Array.from(tokenIds, BigInt), [1, tokenIds.length]),
        h: new ort.Tensor("float32", joined(states.map((state) => state.h)), shape),
        c: new ort.Tensor("float32", joined(states.map((state) => state.c)), shape),
        values,
        keys,
      });
      const [logits, nextH, nextC, attention] = ["logits", "next_h", "next_c", "attention"].map((name) =>
        rows(outputs[name]),
      );
      return tokenIds.map((_, i) => ({ logits: logits[i], h: nextH[i], c: nextC[i], attention: attention[i] }));
    };
    const search = numBeams === 1 ? greedySearch : beamSearch;
    const best = await search(step, { h: h.data, c: c.data }, generation, numBeams);
    return { text: this.decode(best.tokenIds), ...this.wordsAndGrids(best.tokenIds, best.attentions) };
  }

  /** Token ids to text without special tokens: `man`, `'`, `s`, `surf`, `##board` to `man's surfboard`. */
  decode(tokenIds) {
    const tokens = tokenIds
      .filter((id) => !this.settings.special_token_ids.includes(id))
      .map((id) => this.settings.vocabulary[id]);
    const text = tokens.map((token, i) => (i && token.startsWith("##") ? token.slice(2) : spaced(token))).join("");
    return text.replace(/^ /, "").replace(/([\p{L}\p{N}_]) (['/-]) (?=[\p{L}\p{N}_])/gu, "$1$2");
  }

  /** The caption's words, and the mean attention of each word's tokens, as attention/maps.py merges them. */
  wordsAndGrids(tokenIds, attentions) {
    const wordsOf = (ids) => this.decode(ids).split(/\s+/).filter(Boolean);
    const words = wordsOf(tokenIds);
    // Decoding only removes spaces, so counting letters shows which word a token ends up in.
    let end = 0;
    const ends = words.map((word) => (end += word.length));
    const grids = words.map(() => new Array(attentions[0].length).fill(0));
    let letters = 0;
    tokenIds.forEach((_, number) => {
      const before = letters;
      letters = wordsOf(tokenIds.slice(0, number + 1)).join("").length;
      if (letters === before) return;
      const grid = grids[ends.findIndex((end) => end > before)];
      attentions[number].forEach((weight, position) => (grid[position] += weight));
    });
    return { words, grids: grids.map((grid) => scaled(grid, 1 / grid.reduce((sum, weight) => sum + weight, 0))) };
  }
}

function spaced(token) {
  // As tokenizers' WordPiece decoder: no space before what ends a sentence or a contraction.
  return /^([.?!,]|n't|'(m|s|ve|re))/.test(token) ? token : ` ${token}`;
}

async function greedySearch(step, state, generation) {
  const { decoder_start_token_id, eos_token_id, max_length } = generation;
  const [tokenIds, attentions] = [[], []];
  while (tokenIds.length < max_length - 1 && tokenIds.at(-1) !== eos_token_id) {
    [state] = await step([tokenIds.at(-1) ?? decoder_start_token_id], [state]);
    for (const repeating of repeatingTokens(tokenIds, generation)) state.logits[repeating] = -Infinity;
    tokenIds.push(largest(state.logits, 1)[0]);
    attentions.push(state.attention);
  }
  return { tokenIds, attentions };
}

/** The best of the captions that transformers' beam search finds, with its default `early_stopping=False`. */
async function beamSearch(step, state, generation, numBeams) {
  const { decoder_start_token_id, eos_token_id, max_length, length_penalty } = generation;
  let running = [{ score: 0, tokenIds: [], attentions: [], state }]; // best first; the score is the log probability
  let ended = []; // best first; the score is divided by length ** length_penalty
  for (let length = 1; length < max_length; length++) {
    const tokenIds = running.map((beam) => beam.tokenIds.at(-1) ?? decoder_start_token_id);
    const states = await step(tokenIds, running.map((beam) => beam.state));
    const size = states[0].logits.length;
    const scores = joined(
      states.map(({ logits }, i) => {
        const logProbs = logSoftmax(logits);
        for (const repeating of repeatingTokens(running[i].tokenIds, generation)) logProbs[repeating] = -Infinity;
        return logProbs.map((logProb) => logProb + running[i].score);
      }),
    );
    // Twice as many as beams, so that enough candidates remain if some of them end.
    const candidates = largest(scores, 2 * numBeams).map((place) => {
      const [parent, token] = [Math.floor(place / size), place % size];
      return {
        score: scores[place],
        tokenIds: [...running[parent].tokenIds, token],
        attentions: [...running[parent].attentions, states[parent].attention],
        state: states[parent],
        atEnd: token === eos_token_id || length === max_length - 1,
      };
    });
    for (const candidate of candidates.slice(0, numBeams)) {
      if (candidate.atEnd) ended.push({ ...candidate, score: candidate.score / length ** length_penalty });
    }
    ended = ended.sort((one, other) => other.score - one.score).slice(0, numBeams);
    running = candidates.filter((candidate) => !candidate.atEnd).slice(0, numBeams);
    if (!running.length) break;
    // An estimate of the score that a running caption can still reach: a longer caption may score better.
    if (ended.length === numBeams && running[0].score / length ** length_penalty <= ended.at(-1).score) break;
  }
  return ended[0];
}

/** The tokens that would complete a second occurrence of `no_repeat_ngram_size` tokens in a row. */
function repeatingTokens(tokenIds, { decoder_start_token_id, no_repeat_ngram_size: size }) {
  if (!size) return [];
  const tokens = [decoder_start_token_id, ...tokenIds];
  const last = tokens.slice(tokens.length - size + 1);
  return tokens.slice(size - 1).filter((_, place) => last.every((token, i) => tokens[place + i] === token));
}

/** Where the largest values are, in descending order. */
function largest(values, number) {
  const places = [];
  for (let i = 0; i < values.length; i++) {
    if (places.length === number && values[i] <= values[places[number - 1]]) continue;
    let at = places.length;
    while (at && values[i] > values[places[at - 1]]) at--;
    places.splice(at, 0, i);
    places.length = Math.min(places.length, number);
  }
  return places;
}

function logSoftmax(logits) {
  const greatest = logits.reduce((one, other) => Math.max(one, other));
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - greatest), 0);
  return logits.map((logit) => logit - greatest - Math.log(sum));
}

/** The rows of a tensor (1, captions, size). */
function rows({ data, dims: [, captions, size] }) {
  return Array.from({ length: captions }, (_, i) => data.subarray(i * size, (i + 1) * size));
}

function joined(arrays) {
  const all = new Float32Array(arrays.reduce((length, array) => length + array.length, 0));
  arrays.reduce((at, array) => (all.set(array, at), at + array.length), 0);
  return all;
}

function scaled(values, factor) {
  return values.map((value) => value * factor);
}

async function fetchFile(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Error(`${nameOf(url)} cannot be downloaded: the connection or the server failed. Reload the page.`);
  }
  if (!response.ok) throw new Error(`${nameOf(url)} is missing on the server (HTTP ${response.status}).`);
  return response;
}

async function download(urls, onProgress) {
  const responses = await Promise.all(urls.map(fetchFile));
  let loaded = 0;
  const read = async (response) => {
    const chunks = [];
    try {
      for (const reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) return new Uint8Array(await new Blob(chunks).arrayBuffer());
        chunks.push(value);
        onProgress((loaded += value.length));
      }
    } catch {
      throw new Error(`The download of ${nameOf(response.url)} broke off. Reload the page.`);
    }
  };
  return Promise.all(responses.map(read));
}

function nameOf(url) {
  return url.split("/").at(-1);
}
