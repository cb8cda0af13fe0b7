// @ts-check
/** Conversion between the form, API requests and the settings of jobs. */

import { trainsMasks } from "./masks.js";

export const TEXTS = ["pydoc", "pycode", "chat", "self"];
/** Text that a server must allow. */
export const WEB = "web";
const WEB_DATASET = "allenai/c4";
export const ALLOCATIONS = ["auto", "lagrangian", "fisher_pca", "fisher", "uniform"];
export const RATIOS = [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5];
export const DEFAULT_PRIORITY = 5;

/** Amounts of calibration text; thorough is the default of the command line. @type {Record<string, { title: string, samples: number, sequence_length: number }>} */
export const CALIBRATIONS = {
  quick: { title: "Quick", samples: 32, sequence_length: 256 },
  standard: { title: "Standard", samples: 64, sequence_length: 256 },
  thorough: { title: "Thorough", samples: 128, sequence_length: 2048 },
};

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
/** The preset: not calibrated on Python code, whose perplexity therefore tells how unseen text fares. */
export const START = {
  source: "package", ref: "", revision: "",
  size: "ratio", ratio: 0.1, params: "", mebibytes: "", ratios: [0.1, 0.2, 0.3, 0.4],
  target: "research", method: METHOD, methods: [METHOD], allocation: "auto",
  texts: ["pydoc", "chat", "self"], text_field: "", ...amountOf("standard"), round_to: /** @type {number | null} */ (null),
  mask_tokens: "", mask_seconds: "",
  exports: /** @type {string[]} */ ([]),
  evaluate: ["pydoc", "pycode"], evaluate_field: "", benchmark: true, prompts: PROMPTS.join("\n"), tasks: "", task_limit: "100", gate: "",
  recover: "", label: "", priority: DEFAULT_PRIORITY,
  /** Settings of the duplicated job that have no field in the form. @type {any} */
  base: { compression: {}, evaluation: { max_tokens: 4096 } },
};

/** @param {string} name */
function amountOf(name) {
  const { samples, sequence_length } = CALIBRATIONS[name];
  return { samples, sequence_length };
}

/** Name of the amount of calibration text, or `custom`. @param {Form} form */
export const calibrationName = (form) =>
  Object.keys(CALIBRATIONS).find((name) => CALIBRATIONS[name].samples === form.samples && CALIBRATIONS[name].sequence_length === form.sequence_length) || "custom";

/** Calibration texts that jobs may name on a server. @param {any} offer @returns {string[]} */
export const allowedTexts = (offer) => (offer?.hub_data.some((/** @type {string} */ pattern) => glob(pattern).test(WEB_DATASET)) ? [...TEXTS, WEB] : TEXTS);

/** Options of the field for the method; until the service has listed its methods, the form's own. @param {any} offer @param {Form} form @returns {string[][]} */
export const methodOptions = (offer, form) => offer?.methods?.map((/** @type {any} */ method) => [method.name, method.title]) || [[form.method, form.method]];

/** Methods of the form's jobs: those that a sweep compares, or one. @param {Form} form @returns {string[]} */
export const methodsOf = (form) => (form.size === "sweep" ? form.methods : [form.method]);

/** A glob with `*` and `?` as a regular expression. @param {string} pattern */
const glob = (pattern) => new RegExp(`^${pattern.replace(/[.+^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*").replace(/\?/g, ".")}$`);

/** What must still be filled in before the form can be sent; empty if nothing. @param {Form} form */
export function missingEntry(form) {
  if (!form.ref.trim()) return "Choose a model first.";
  if (form.size === "params" && !(Number(form.params) > 0)) return "Enter the parameter count of the result.";
  if (form.size === "bytes" && !(Number(form.mebibytes) > 0)) return "Enter the file size of the result.";
  if (form.size === "sweep" && !form.ratios.length) return "Select at least one percentage.";
  if (!methodsOf(form).length) return "Select at least one method.";
  if (!form.texts.length) return "Select at least one calibration text.";
  return "";
}

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
  if (form.size === "params") return { target_params: Math.round(Number(form.params) * 1e6) };
  if (form.size === "bytes") return { target_bytes: Math.round(Number(form.mebibytes) * 2 ** 20) };
  return { ratio: ratio ?? form.ratio };
}

/** @param {Form} form @param {string} method */
function shared(form, method) {
  const { compression } = form.base;
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
        ...fieldSetting(form.text_field, compression.calibration),
        samples: form.samples,
        sequence_length: form.sequence_length,
      },
      mask_training: maskTraining(form),
      recover: recovery(form.recover, compression.recover),
    },
    evaluation: evaluationOf(form),
    labels: { ...form.base.labels, ...(form.label.trim() ? { name: form.label.trim() } : {}) },
    priority: form.priority,
  };
}

/** @param {Form} form */
function evaluationOf(form) {
  const before = form.base.evaluation;
  const tasks = listed(form.tasks, /[\s,]+/);
  if (!form.evaluate.length && !form.benchmark && !tasks.length) return null;
  return {
    ...before,
    perplexity: form.evaluate,
    ...fieldSetting(form.evaluate_field, before),
    benchmark: form.benchmark,
    prompts: listed(form.prompts, /\n/),
    tasks,
    task_limit: tasks.length && form.task_limit ? Number(form.task_limit) : null,
    gate: gate(form.gate, before.gate),
  };
}

/** Field of the records that holds the text, where one is named. @param {string} name @param {any} before settings that may have one */
const fieldSetting = (name, before) => (name.trim() || before?.text_field ? { text_field: name.trim() || null } : {});

/** @param {string} limit @param {any} before */
function gate(limit, before) {
  const others = before?.min_task_ratio ? { min_task_ratio: before.min_task_ratio } : {};
  if (limit) return { ...others, max_perplexity_ratio: Number(limit) };
  return before?.min_task_ratio ? others : null;
}

/** @param {string} text @param {RegExp} separator */
const listed = (text, separator) => text.split(separator).map((part) => part.trim()).filter(Boolean);

/** Training of masks, which only some methods have; null chooses without training. @param {Form} form */
function maskTraining(form) {
  const [tokens, seconds] = [form.mask_tokens, form.mask_seconds];
  if (!methodsOf(form).every(trainsMasks) || (!tokens && !seconds)) return null;
  return {
    ...form.base.compression.mask_training,
    ...(tokens ? { max_tokens: Number(tokens) } : {}),
    max_seconds: seconds ? Number(seconds) : null,
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
  const { name = "", ...labels } = job.labels;
  return {
    ...START,
    source: job.model.source, ref: job.model.ref, revision: job.model.revision || "",
    size: target_params ? "params" : target_bytes ? "bytes" : "ratio",
    ratio: ratio ?? START.ratio,
    params: target_params ? String(target_params / 1e6) : "",
    mebibytes: target_bytes ? String(target_bytes / 2 ** 20) : "",
    target: compression.target, method: compression.method, methods: [compression.method], allocation: compression.allocation,
    texts: names(compression.calibration.source), text_field: compression.calibration.text_field || "",
    samples: compression.calibration.samples, sequence_length: compression.calibration.sequence_length,
    round_to: compression.round_to,
    mask_tokens: String(compression.mask_training?.max_tokens ?? ""), mask_seconds: String(compression.mask_training?.max_seconds ?? ""),
    exports: compression.exports.filter((/** @type {string} */ format) => format !== "safetensors"),
    evaluate: evaluation.perplexity, evaluate_field: evaluation.text_field || "", benchmark: evaluation.benchmark,
    prompts: (evaluation.prompts || []).join("\n"), tasks: (evaluation.tasks || []).join(", "),
    task_limit: evaluation.tasks?.length ? String(evaluation.task_limit ?? "") : START.task_limit,
    gate: String(evaluation.gate?.max_perplexity_ratio ?? ""),
    recover: compression.recover?.loss || "", label: name, priority: job.priority ?? DEFAULT_PRIORITY,
    base: { compression, evaluation, labels },
  };
}
