// @ts-check
/** The dashboard's words: names of states, stages, sources, targets, settings and warnings. */

import { bytes, count, share } from "./format.js";

export const ENDED = ["succeeded", "failed", "cancelled"];

/** @type {Record<string, string>} states of jobs, sweeps, uploads, deliveries and hand-offs */
const STATE_NAMES = {
  queued: "Queued", running: "Running", pausing: "Pausing", paused: "Paused", cancelling: "Cancelling",
  succeeded: "Succeeded", failed: "Failed", cancelled: "Cancelled", empty: "Empty",
  open: "Incomplete", verifying: "Verifying", ready: "Ready", refused: "Rejected",
  pending: "Pending", done: "Done", delivered: "Delivered",
};

/** @param {string} state */
export const stateName = (state) => STATE_NAMES[state] || capital(state);

/** @type {Record<string, string>} stages of a job, in order */
export const STAGES = {
  load: "Load model", tournament: "Choose method", calibrate: "Calibrate", allocate: "Plan sizes", compress: "Compress layers",
  recover: "Recovery training", verify: "Verify", evaluate: "Evaluate", export: "Export", publish: "Publish",
};

/** @param {string | null | undefined} stage */
export const stageName = (stage) => STAGES[stage || ""] || capital(stage || "");

/**
 * What a running job does, beside the name of its stage: the engine's message in the dashboard's words, with the layer that it is
 * in. The layer that is compressed is named by the head of the view.
 * @param {any} progress @param {string} stage
 */
export function stepText({ message, layer, layers }, stage) {
  if (stage === "compress") return capital(message.replace(/^layer \d+\/\d+(?:: | is done$|$)/, ""));
  const [step, ...substeps] = message.replace(/^measuring the sensitivity of layers/, "measuring layer sensitivity").split(": ");
  return capital([layers ? `${step} (${layer + 1}/${layers})` : step, ...substeps].join(": "));
}

/** @type {Record<string, string>} */
export const SOURCES = { package: "Preset", hub: "Hugging Face Hub", upload: "Uploaded", path: "Server path" };

/** @type {Record<string, string>} where the result of a target runs */
const TARGET_NAMES = { research: "transformers", adaptive: "vLLM · llama.cpp", stock: "Any runtime" };

/** @typedef {{ title: string, field: string, button: string, done: string }} Registry */

/** @type {Record<string, Registry>} registries to which results are handed off, by target */
export const REGISTRIES = {
  hub: { title: "Push to a Hub repository", field: "Repository", button: "Push", done: "Pushed:" },
  mlflow: { title: "Register in MLflow", field: "Registered model", button: "Register", done: "Registered:" },
};

/** Runtimes of a target's results. @param {string} target */
export const runsIn = (target) => TARGET_NAMES[target] || target;

/** @type {Record<string, string>} */
const TEXT_NAMES = {
  pydoc: "Python docs", pycode: "Python code", chat: "Chat (generated)", self: "Free text (generated)", web: "Web pages (C4)",
};

/** @typedef {Map<string, string>} Names names of uploads by id */

/** A calibration or evaluation text as people call it. @param {string} text @param {Names} [uploads] */
export function textName(text, uploads) {
  if (text.startsWith("upload:")) return uploads?.get(text.slice(7)) || text;
  if (text.startsWith("hub:")) return text.slice(4);
  if (text.startsWith("/")) return text.split("/").pop() || text;
  return TEXT_NAMES[text] || text;
}

/** A mixture of texts, with shares where they differ. @param {any} source a text, or weighted texts @param {Names} [uploads] */
export function mixtureName(source, uploads) {
  if (typeof source === "string") return textName(source, uploads);
  const total = source.reduce((/** @type {number} */ sum, /** @type {any} */ part) => sum + (part.weight ?? 1), 0);
  const equal = new Set(source.map((/** @type {any} */ part) => part.weight ?? 1)).size === 1;
  return source.map((/** @type {any} */ part) => `${textName(part.source, uploads)}${equal ? "" : ` ${Math.round((100 * (part.weight ?? 1)) / total)} %`}`).join(", ");
}

/** @type {Record<string, string>} */
const DOMAIN_NAMES = { in: "in calibration", out: "unseen" };

/** A text's domain relative to the calibration, empty if unknown. @param {string | null | undefined} domain */
export const domainName = (domain) => DOMAIN_NAMES[domain || ""] || "";

/** A model as people call it. @param {any} model @param {Names} [uploads] */
export function modelName(model, uploads) {
  if (model.source === "upload") return uploads?.get(model.ref) || model.ref;
  return model.source === "path" ? model.ref.split("/").filter(Boolean).pop() || model.ref : model.ref;
}

/** A model with its source, as in "support-bot (uploaded)". @param {any} model @param {Names} [uploads] */
export const describedModel = (model, uploads) =>
  `${modelName(model, uploads)}${model.revision ? `@${model.revision}` : ""} (${SOURCES[model.source] === "Hugging Face Hub" ? "Hub" : (SOURCES[model.source] || model.source).toLowerCase()})`;

/** A job's or sweep's name, or else its model's. @param {any} job @param {Names} [uploads] */
export const titleOf = (job, uploads) => job.labels?.name || modelName(job.model, uploads).split("/").pop();

/** The requested amount: a share of layer weights, or the size of the result. @param {any} compression */
export function requestedAmount(compression) {
  const { ratio, target_params: parameters, target_bytes: size } = compression;
  if (ratio !== null && ratio !== undefined) return `${share(ratio)} of layer weights`;
  if (parameters) return `to ${count(parameters)} parameters`;
  return `to ${bytes(size)}`;
}

/** @type {Record<string, (waiting: any) => string>} why a queued job waits although it may be its turn */
const WAITING_WORDS = {
  no_worker: () => "No worker is running: the job starts once one does.",
  no_gpu: () => "The job asks for a GPU, and no worker has one. It starts once such a worker does, or cancel it and choose another device.",
  gpu_dtype: () => "No worker has a GPU that computes in the number format of this job. It starts once such a worker does, or cancel it and choose “auto” as compute type.",
  gpu_memory: (waiting) => `The job needs a GPU with ${bytes(waiting.gpu_bytes)} of memory, and no worker has one. It starts once such a worker does.`,
  gpu_count: () => "No worker has as many equal GPUs as the job asks for. It starts once such a worker does, or cancel it and ask for fewer.",
  host_memory: (waiting) => `The job needs ${bytes(waiting.host_bytes)} of memory, and no worker has that much. It starts once such a worker does.`,
};

/** @param {{ code: string, message: string }} waiting */
export const waitingText = (waiting) => WAITING_WORDS[waiting.code]?.(waiting) || sentence(waiting.message.replace(/^waiting: /, ""));

/** @type {Record<string, (fields: any) => string>} events of the engine's log */
export const LOG_WORDS = {
  child_started: () => "engine process started",
  engine_crashed: () => "the engine crashed",
  lines_dropped: (fields) => `${fields.lines} lines were left out`,
};

/** @type {Record<string, string>} events of a job, in the log and in webhooks */
export const EVENT_NAMES = {
  queued: "queued", started: "started", progress: "progress", pause_requested: "pause requested", paused: "paused",
  resumed: "resumed", cancel_requested: "cancellation requested", requeued: "queued again", retried: "retried",
  succeeded: "succeeded", failed: "failed", cancelled: "cancelled",
};

/** An event that webhooks are sent. @param {string} name as in `job.succeeded` */
export const webhookEvent = (name) => (name === "webhook.test" ? "Test" : `Job ${EVENT_NAMES[name.replace(/^job\./, "")] || name}`);

/** @type {Record<string, string>} calls of the audit log: method and template of the path */
const CALL_NAMES = {
  "POST /v1/jobs": "Submit job",
  "POST /v1/jobs:validate": "Estimate job",
  "PATCH /v1/jobs/{job_id}": "Change name or labels of job",
  "DELETE /v1/jobs/{job_id}": "Delete job",
  "POST /v1/jobs/{job_id}/pause": "Pause job",
  "POST /v1/jobs/{job_id}/resume": "Resume job",
  "POST /v1/jobs/{job_id}/cancel": "Cancel job",
  "POST /v1/jobs/{job_id}/retry": "Retry job",
  "POST /v1/jobs/{job_id}/pin": "Pin files of job",
  "POST /v1/jobs/{job_id}/unpin": "Unpin files of job",
  "POST /v1/jobs/{job_id}/report-links": "Make link to report",
  "POST /v1/jobs/{job_id}/hand-offs": "Hand result to registry",
  "POST /v1/jobs/{job_id}/generate": "Send prompt to models of job",
  "POST /v1/jobs/{job_id}/generations/{generation_id}/cancel": "Cancel prompt",
  "DELETE /v1/jobs/{job_id}/generations/{generation_id}": "Delete prompt and answers",
  "POST /v1/sweeps": "Start sweep",
  "POST /v1/sweeps/{sweep_id}/ratios": "Add sizes to sweep",
  "POST /v1/sweeps/{sweep_id}/cancel": "Cancel sweep",
  "POST /v1/uploads": "Begin upload",
  "PUT /v1/uploads/{upload_id}/parts/{file}/{number}": "Send part of upload",
  "POST /v1/uploads/{upload_id}/complete": "Complete upload",
  "DELETE /v1/uploads/{upload_id}": "Delete upload",
  "POST /v1/keys": "Create API key",
  "DELETE /v1/keys/{key_id}": "Revoke API key",
  "POST /v1/webhooks": "Create webhook",
  "PATCH /v1/webhooks/{webhook_id}": "Change webhook",
  "DELETE /v1/webhooks/{webhook_id}": "Delete webhook",
  "POST /v1/webhooks/{webhook_id}/test": "Send test to webhook",
  "POST /v1/webhooks/{webhook_id}/rotate": "Change secret of webhook",
  "POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver": "Deliver event again",
};

/** A call of the audit log in words; the call itself where it is none of this release. @param {{ method: string, route: string }} entry */
export function callName({ method, route }) {
  if (route === "(none)") return "Call of an unknown address";
  return CALL_NAMES[`${method} ${route}`] || `${method} ${route}`;
}

/** @type {Record<number, string>} why calls are rejected, by their HTTP status */
const REJECTIONS = {
  401: "Key not valid", 403: "Not allowed", 404: "Not found", 409: "Not possible then", 412: "Changed in the meantime", 413: "Too large", 429: "Too many calls",
};

/** Outcome of a call of the audit log. @param {number} status HTTP status */
export function outcomeName(status) {
  if (status < 400) return "Done";
  return status < 500 ? REJECTIONS[status] || "Rejected" : "Failed";
}

/** @type {Record<string, string>} strategies that decide how much every layer keeps, those of single methods included */
const ALLOCATION_NAMES = {
  auto: "method's default", uniform: "Equal layers", fisher: "Fisher", fisher_pca: "Fisher with PCA", lagrangian: "Lagrangian",
  global_threshold: "Global threshold", two_stage: "Two stages", block_influence: "Block influence", whole_layers: "Whole layers",
  residual_width: "Width of the residual stream", solution_path: "Solution path", hypernetwork: "Hypernetwork",
};

/** @param {string} allocation */
export const allocationName = (allocation) => ALLOCATION_NAMES[allocation] || allocation;

/** @type {Record<string, string>} warnings of `jobs:validate` by code; others are shown as they are */
const WARNING_WORDS = {
  evaluation_of_same_kind: "All evaluation texts are also used for calibration. Scores will look better than real use: add an unseen text under Evaluation.",
  evaluation_is_calibration: "An evaluation text is also used for calibration. Scores will look better than real use: evaluate on another text.",
  no_evaluation: "Nothing is evaluated, so the loss of quality will be unknown.",
  tasks_not_timed: "How many examples the tasks have is not known: the time assumes 1,000 each.",
};

/** @param {{ code: string, message: string }} warning */
export const warningText = (warning) => WARNING_WORDS[warning.code] || sentence(warning.message);

/** A message of the engine as a sentence, with the names of settings and code in quotation marks. @param {string} message */
export const sentence = (message) => `${capital(message.replace(/`([^`]+)`/g, "“$1”").replace(/\b(?:compression|evaluation)(?:\.\w+)+/g, (path) => `“${settingName(path)}”`))}.`.replace(/\.\.$/, ".");

/** @type {Record<string, string>} settings of jobs by their path */
const SETTING_NAMES = {
  "compression.ratio": "Removed share of layer weights",
  "compression.target_params": "Parameters of the result",
  "compression.target_bytes": "Size of the result",
  "compression.target": "Runs in",
  "compression.method": "Method",
  "compression.allocation": "Allocation method",
  "compression.round_to": "Round dimensions to",
  "compression.dtype": "Compute type",
  "compression.device": "Device",
  "compression.devices": "Number of GPUs",
  "compression.batch_size": "Samples per forward pass",
  "compression.exports": "File formats",
  "compression.module_cap": "Largest share removed from one module",
  "compression.attention_bias": "Factor on attention scores",
  "compression.prefer_fast_shapes": "Prefer fast widths",
  "compression.calibration.source": "Calibration data",
  "compression.calibration.samples": "Samples",
  "compression.calibration.sequence_length": "Tokens per sample",
  "compression.calibration.seed": "Random seed",
  "compression.calibration.self_share": "Share of generated free text",
  "compression.calibration.text_field": "Text field",
  "compression.mask_training.max_tokens": "Mask training, tokens",
  "compression.mask_training.max_seconds": "Mask training, seconds",
  "compression.mask_training.learning_rate": "Mask training, learning rate",
  "compression.recover.loss": "Recovery training",
  "compression.recover.max_tokens": "Recovery training, tokens",
  "compression.recover.max_seconds": "Recovery training, seconds",
  "compression.recover.adapter": "Recovery training, adapter",
  "compression.recover.rank": "Recovery training, adapter rank",
  "compression.recover.alpha": "Recovery training, adapter alpha",
  "compression.recover.auxiliary.ce": "Recovery training, weight of cross-entropy",
  "compression.recover.auxiliary.distill": "Recovery training, weight of distillation",
  "compression.recover.auxiliary.hidden": "Recovery training, weight of hidden states",
  "compression.recover.learning_rate": "Recovery training, learning rate",
  "compression.recover.warm_up": "Recovery training, warm-up",
  "compression.recover.schedule": "Recovery training, schedule",
  "compression.recover.weight_decay": "Recovery training, weight decay",
  "compression.recover.batch_size": "Recovery training, samples per forward pass",
  "compression.recover.gradient_accumulation": "Recovery training, forward passes per step",
  "compression.recover.temperature": "Recovery training, temperature",
  "compression.recover.source": "Recovery training, text",
  "compression.recover.text_field": "Recovery training, text field",
  "compression.recover.sequence_length": "Recovery training, tokens per sample",
  "compression.recover.seed": "Recovery training, random seed",
  "evaluation.perplexity": "Evaluation texts",
  "evaluation.max_tokens": "Tokens scored per text",
  "evaluation.context_length": "Context length of the evaluation",
  "evaluation.benchmark": "Benchmark speed",
  "evaluation.speed_grid": "Loads of the speed benchmark",
  "evaluation.text_field": "Text field of the evaluation",
  "evaluation.prompts": "Sample prompts",
  "evaluation.tasks": "Evaluation tasks",
  "evaluation.task_limit": "Examples per task",
  "evaluation.gate.max_perplexity_ratio": "Quality gate, perplexity ratio",
  "evaluation.gate.min_task_ratio": "Quality gate, task score ratio",
  "labels.name": "Name",
  "model.source": "Model source",
  "model.ref": "Model",
  "model.revision": "Revision",
  priority: "Priority",
};

/** @param {string} path */
export const settingName = (path) => SETTING_NAMES[path] || (path.startsWith("labels.") ? `Label “${path.slice(7)}”` : path);

/** @type {Record<string, string>} */
const RECOVERY_NAMES = { distill: "distill from the original", ce: "cross-entropy on text", hidden: "match hidden states" };
export const RECOVERIES = Object.entries({ "": "none", ...RECOVERY_NAMES });

/** A setting's value in words. @param {string} path @param {any} value @param {Names} [uploads] @returns {string} */
export function settingValue(path, value, uploads) {
  if (value === null || value === undefined || value === "") return "–";
  if (/(calibration|recover)\.source$/.test(path)) return mixtureName(value, uploads);
  if (path.endsWith("evaluation.perplexity")) return value.map((/** @type {string} */ text) => textName(text, uploads)).join(", ") || "–";
  if (path.endsWith("target")) return runsIn(value);
  if (path.endsWith(".allocation")) return allocationName(value);
  if (path.endsWith("model.source")) return SOURCES[value] || value;
  if (path.endsWith("recover.loss")) return RECOVERY_NAMES[value] || value;
  if (path.endsWith(".ratio")) return share(value);
  if (path.endsWith("target_bytes")) return bytes(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.map((part) => (typeof part === "object" ? JSON.stringify(part) : String(part))).join(", ") || "–";
  if (typeof value === "number") return Number.isInteger(value) ? value.toLocaleString("en") : String(value);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** @param {string} text */
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
