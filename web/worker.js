// Runs the captioner off the page's thread, so that the page stays responsive.

import { OnnxCaptioner } from "./onnx_captioner.js";

const model = new URL("model/", import.meta.url).href;
const loading = OnnxCaptioner.load(model, (loaded, total) => postMessage({ kind: "progress", loaded, total }));
loading.then(
  ({ settings }) => postMessage({ kind: "ready", settings }),
  (error) => postMessage({ kind: "unusable", message: error.message }),
);

let turn = Promise.resolve(); // one image after the other
onmessage = ({ data: { number, image, numBeams } }) => {
  turn = turn.then(async () => {
    try {
      const captioner = await loading;
      postMessage({ kind: "caption", number, ...(await captioner.caption(image, numBeams)) });
    } catch (error) {
      postMessage({ kind: "failure", number, message: error.message });
    }
  });
};
