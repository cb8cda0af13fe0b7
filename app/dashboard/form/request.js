// @ts-check
/** What a form asks for, as the API takes it, and a job's settings as a form. */

export const TARGETS = [
  ["research", "each layer gets the shapes that suit it: the best quality; brings its own code"],
  ["adaptive", "a DeciLM: runs in vLLM, and in llama.cpp as GGUF"],
  ["stock", "the model's own class: runs wherever the dense model runs"],
];
export const TEXTS = ["pydoc", "pycode", "chat", "self"];
export const METHODS = ["intraslice_plus", "intraslice", "magnitude"];
export const ALLOCATIONS = ["auto", "lagrangian", "fisher_pca", "fisher", "uniform"];
export const RATIOS = [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5];

/** @typedef {typeof START} Form */
export const START = {
  source: "package", ref: "", revision: "",
  size: "ratio", ratio: 0.3, params: "", mebibytes: "", ratios: [0.1, 0.2, 0.3, 0.4],
  target: "research", method: "intraslice_plus", allocation: "auto",
  texts: TEXTS, samples: 64, sequence_length: 256, round_to: 8,
  exports: /** @type {string[]} */ ([]),
  evaluate: ["pydoc", "pycode"], benchmark: true, recover: "", label: "",
  /** Settings of a job that the form has no field for. @type {any} */
  base: { compression: {}, evaluation: { max_tokens: 4096 } },
};

/** The body for `POST /v1/jobs`, or of one of a sweep's jobs. @param {Form} form @param {number} [ratio] */
export function jobBody(form, ratio) {
  const common = shared(form);
  return { ...common, compression: { ...common.compression, ...sized(form, ratio) } };
}

/** The body for `POST /v1/sweeps`. @param {Form} form */
export const sweepBody = (form) => ({ ...shared(form), ratios: form.ratios });

/** @param {Form} form @param {number} [ratio] */
function sized(form, ratio) {
  if (form.size === "params") return { target_params: Math.round(Number(form.params) * 1e6) || 1 };
  if (form.size === "bytes") return { target_bytes: Math.round(Number(form.mebibytes) * 2 ** 20) || 1 };
  return { ratio: ratio ?? form.ratio };
}

/** @param {Form} form */
function shared(form) {
  const { compression, evaluation } = form.base;
  const measured = form.evaluate.length || form.benchmark || evaluation.tasks?.length;
  return {
    model: { source: form.source, ref: form.ref.trim(), ...(form.revision ? { revision: form.revision } : {}) },
    compression: {
      ...compression,
      target: form.target,
      method: form.method,
      allocation: form.allocation,
      round_to: form.round_to,
      exports: ["safetensors", ...(form.target === "research" ? [] : form.exports)],
      calibration: {
        ...compression.calibration,
        source: mixture(form.texts, compression.calibration?.source),
        samples: form.samples,
        sequence_length: form.sequence_length,
      },
      recover: recovery(form.recover, compression.recover),
    },
    evaluation: measured ? { ...evaluation, perplexity: form.evaluate, benchmark: form.benchmark } : null,
    labels: form.label ? { name: form.label } : {},
  };
}

/** Weights stay as they were while the texts do. @param {string[]} texts @param {any} before */
function mixture(texts, before) {
  if (before && names(before).join() === texts.join()) return before;
  return texts.length === 1 ? texts[0] : texts.map((source) => ({ source }));
}

/** @param {any} source a text, or a mixture of some @returns {string[]} */
const names = (source) => (typeof source === "string" ? [source] : source.map((/** @type {any} */ one) => one.source));

/** @param {string} loss @param {any} before */
function recovery(loss, before) {
  if (!loss) return null;
  return before?.loss === loss ? before : { loss };
}

/** The form that would ask for the same again. @param {any} job @returns {Form} */
export function formOf(job) {
  const { ratio, target_params, target_bytes, ...compression } = job.compression;
  const evaluation = job.evaluation || { perplexity: [], benchmark: false };
  const size = target_params ? "params" : target_bytes ? "bytes" : "ratio";
  return {
    ...START,
    source: job.model.source, ref: job.model.ref, revision: job.model.revision || "",
    size, ratio: ratio ?? START.ratio,
    params: target_params ? String(target_params / 1e6) : "",
    mebibytes: target_bytes ? String(target_bytes / 2 ** 20) : "",
    target: compression.target, method: compression.method, allocation: compression.allocation,
    texts: names(compression.calibration.source),
    samples: compression.calibration.samples, sequence_length: compression.calibration.sequence_length,
    round_to: compression.round_to,
    exports: compression.exports.filter((/** @type {string} */ one) => one !== "safetensors"),
    evaluate: evaluation.perplexity, benchmark: evaluation.benchmark,
    recover: compression.recover?.loss || "", label: job.labels.name || "",
    base: { compression, evaluation },
  };
}
