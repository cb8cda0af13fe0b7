// @ts-check
/** Conversion between the form, API requests and the settings of jobs. */

export const TARGETS = [
  ["research", "Best quality", "transformers, custom code"],
  ["adaptive", "vLLM and llama.cpp", ""],
  ["stock", "Any runtime", "standard architecture"],
];
export const TEXTS = ["pydoc", "pycode", "chat", "self"];
/** Text that a server must allow. */
export const WEB = "web";
const WEB_DATASET = "allenai/c4";
export const ALLOCATIONS = ["auto", "lagrangian", "fisher_pca", "fisher", "uniform"];
export const RATIOS = [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5];

/** Prompts of the preset, which both models continue side by side. */
export const PROMPTS = [
  "The capital of France is",
  "Water boils when",
  "Once upon a time, there was a little girl who",
  "The best way to learn a new language is",
  "def is_even(number):",
];

/** Method of the preset. */
const METHOD = "intraslice_plus";

/** @typedef {typeof START} Form */
/** The preset: not calibrated on Python code, whose perplexity is therefore out-of-domain. */
export const START = {
  source: "package", ref: "", revision: "",
  size: "ratio", ratio: 0.1, params: "", mebibytes: "", ratios: [0.1, 0.2, 0.3, 0.4],
  target: "research", method: METHOD, methods: [METHOD], allocation: "auto",
  texts: ["pydoc", "chat", "self"], samples: 64, sequence_length: 256, round_to: /** @type {number | null} */ (null),
  exports: /** @type {string[]} */ ([]),
  evaluate: ["pydoc", "pycode"], benchmark: true, recover: "", label: "",
  /** Settings of the duplicated job that have no field in the form. @type {any} */
  base: { compression: {}, evaluation: { max_tokens: 4096, prompts: PROMPTS } },
};

/** Calibration texts that jobs may name on a server. @param {any} offer @returns {string[]} */
export const allowedTexts = (offer) => (offer?.hub_data.some((/** @type {string} */ pattern) => glob(pattern).test(WEB_DATASET)) ? [...TEXTS, WEB] : TEXTS);

/** Options of the field for the method; until the service has listed its methods, the form's own. @param {any} offer @param {Form} form @returns {string[][]} */
export const methodOptions = (offer, form) => offer?.methods?.map((/** @type {any} */ method) => [method.name, method.title]) || [[form.method, form.method]];

/** Methods of the form's jobs: those that a sweep compares, or one. @param {Form} form @returns {string[]} */
export const methodsOf = (form) => (form.size === "sweep" ? form.methods : [form.method]);

/** A glob with `*` and `?` as a regular expression. @param {string} pattern */
const glob = (pattern) => new RegExp(`^${pattern.replace(/[.+^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*").replace(/\?/g, ".")}$`);

/** Body of `POST /v1/jobs`, also for one job of a sweep. @param {Form} form @param {number} [ratio] @param {string} [method] */
export function jobBody(form, ratio, method) {
  const common = shared(form, method || methodsOf(form)[0]);
  return { ...common, compression: { ...common.compression, ...sized(form, ratio) } };
}

/** Body of `POST /v1/sweeps`. @param {Form} form */
export const sweepBody = (form) => ({
  ...shared(form, form.methods[0]),
  ratios: form.ratios,
  ...(form.methods.length > 1 ? { methods: form.methods } : {}),
});

/** @param {Form} form @param {number} [ratio] */
function sized(form, ratio) {
  if (form.size === "params") return { target_params: Math.round(Number(form.params) * 1e6) || 1 };
  if (form.size === "bytes") return { target_bytes: Math.round(Number(form.mebibytes) * 2 ** 20) || 1 };
  return { ratio: ratio ?? form.ratio };
}

/** @param {Form} form @param {string} method */
function shared(form, method) {
  const { compression, evaluation } = form.base;
  const measured = form.evaluate.length || form.benchmark || evaluation.tasks?.length;
  return {
    model: { source: form.source, ref: form.ref.trim(), ...(form.revision ? { revision: form.revision } : {}) },
    compression: {
      ...compression,
      target: form.target,
      method,
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

/** Keep the weights of the texts unless the texts have changed. @param {string[]} texts @param {any} before */
function mixture(texts, before) {
  if (before && names(before).join() === texts.join()) return before;
  return texts.length === 1 ? texts[0] : texts.map((source) => ({ source }));
}

/** @param {any} source a text, or a mixture of texts @returns {string[]} */
const names = (source) => (typeof source === "string" ? [source] : source.map((/** @type {any} */ entry) => entry.source));

/** @param {string} loss @param {any} before */
function recovery(loss, before) {
  if (!loss) return null;
  return before?.loss === loss ? before : { loss };
}

/** The form with the settings of a job. @param {any} job @returns {Form} */
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
    target: compression.target, method: compression.method, methods: [compression.method], allocation: compression.allocation,
    texts: names(compression.calibration.source),
    samples: compression.calibration.samples, sequence_length: compression.calibration.sequence_length,
    round_to: compression.round_to,
    exports: compression.exports.filter((/** @type {string} */ format) => format !== "safetensors"),
    evaluate: evaluation.perplexity, benchmark: evaluation.benchmark,
    recover: compression.recover?.loss || "", label: job.labels.name || "",
    base: { compression, evaluation },
  };
}
