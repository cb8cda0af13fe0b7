// @ts-check
/** Errors of the API in plain words: by their code, and the field that they are about. */

/** @typedef {{ pointer: string, code: string, message: string }} FieldProblem */

/** @type {Record<string, string>} codes of error responses; the detail is shown where there is no entry */
export const PROBLEM_WORDS = {
  service_error: "The service could not do this.",
  not_found: "This does not exist.",
  job_not_found: "There is no such job. It may have been deleted.",
  report_not_found: "This job has no report: only succeeded jobs have one.",
  artifact_not_found: "There is no such file.",
  artifacts_expired: "The files of this job have expired and were removed. Start the job again to get them.",
  sweep_not_found: "There is no such sweep. It may have been deleted.",
  key_not_found: "There is no such key.",
  upload_not_found: "There is no such upload. It may have been deleted.",
  webhook_not_found: "There is no such webhook.",
  delivery_not_found: "There is no such delivery.",
  generation_not_found: "This prompt was deleted.",
  illegal_state: "The job's state has changed in the meantime, and this is no longer possible.",
  upload_not_open: "This upload is complete and takes no more files.",
  upload_incomplete: "Parts of the upload are missing. Choose the same files again: it resumes.",
  upload_not_ready: "The upload is still being verified. Try again in a moment.",
  upload_in_use: "A job that has not ended uses this upload. Cancel the job, or wait for its end.",
  webhook_disabled: "This webhook is disabled.",
  delivery_pending: "The delivery is still being tried.",
  invalid_request: "Some settings are not possible.",
  url_refused: "This URL is not allowed for webhooks.",
  part_refused: "A part of the upload arrived incomplete. Upload the files again: it resumes.",
  idempotency_key_reused: "The form changed while it was being sent. Press the button again.",
  scope_missing: "Your API key does not allow this. Ask for a key with more rights.",
  playground_disabled: "Trying models by prompts is switched off on this server.",
  too_many_generations: "Earlier prompts of your key have not been answered yet. Wait for one, or cancel it.",
  invalid_link: "The link has expired. Reload the page.",
  not_acceptable: "The service cannot answer in this form.",
  precondition_failed: "This was changed in the meantime. Reload the page and try again.",
  busy: "This is in use at the moment. Try again in a few seconds.",
  path_not_allowed: "This path is not below a directory that the server allows.",
  lease_lost: "Another worker has taken over the job.",
  publication_failed: "The files could not be stored as they were written.",
  hand_off_failed: "The registry did not accept the model.",
  repository_taken: "The repository contains other files or belongs to another project. Choose another name.",
  upload_damaged: "The files arrived damaged. Upload them again.",
  insufficient_disk: "The server's disk is full.",
  migration_rejected: "The database could not be changed.",
  unavailable: "A part of the service does not respond. It is tried again.",
  database_unavailable: "The service's database does not respond. It is tried again.",
  broker_unavailable: "The service's queue does not respond. It is tried again.",
  store_unavailable: "The service's file store does not respond. It is tried again.",
  store_not_owned: "The service's file store belongs to another deployment.",
  unauthenticated: "Invalid API key",
  rate_limited: "Too many requests. Try again in a few seconds.",
  body_too_large: "The request is too large.",
  internal_error: "Something went wrong in the service.",
};

/** @type {Record<string, (message: string) => string>} codes of single fields; the message has the limits */
const FIELD_WORDS = {
  missing: () => "must be filled in",
  too_short: () => "needs at least one entry",
  too_long: (message) => `has too many entries${limit(message)}`,
  string_too_short: () => "must not be empty",
  string_too_long: (message) => `is too long${limit(message)}`,
  string_pattern_mismatch: () => "must not be empty or hold unusual characters",
  greater_than: (message) => `must be more than ${last(message)}`,
  greater_than_equal: (message) => `must be at least ${last(message)}`,
  less_than: (message) => `must be less than ${last(message)}`,
  less_than_equal: (message) => `must be at most ${last(message)}`,
  int_parsing: () => "must be a whole number",
  int_type: () => "must be a whole number",
  int_from_float: () => "must be a whole number",
  float_parsing: () => "must be a number",
  float_type: () => "must be a number",
  finite_number: () => "must be a number",
  literal_error: () => "is not one of the possible values",
  extra_forbidden: () => "is unknown to this server",
  url_parsing: () => "must be an address that begins with https://",
  url_scheme: () => "must be an address that begins with https://",
  package_not_allowed: () => "is not one of this server's presets",
  hub_not_allowed: () => "is not among the Hub names that this server allows",
  path_not_allowed: (message) => (message.includes("absolute") ? "must be an absolute path, which begins with /" : message.includes("more than") ? "has too many files" : message.includes("read") ? "cannot be read by the server" : "is not below a directory that this server allows"),
  not_found: () => "does not exist on the server",
  malformed: (message) => (message.includes("org/name") ? "must be written as organisation/name" : "is not a branch, tag or commit"),
  not_configured: () => "is not configured on this server",
  too_many_tokens: (message) => `asks for more text than this server allows: it ${message}`,
};

/** @type {Record<string, string>} codes of failed jobs: what went wrong, in a few words */
export const FAILURE_WORDS = {
  engine_error: "Error in the engine", bad_configuration: "Settings that do not fit the model", budget_out_of_reach: "Size out of reach",
  bad_model: "The model cannot be used", model_not_found: "Model not found", unsupported_architecture: "Architecture not supported",
  unsupported_format: "File format not supported", broken_checkpoint: "Damaged model files", bad_tokenizer: "The tokenizer cannot be used",
  non_finite_weight: "The model has weights that are no numbers", model_too_large: "Model too large for this server",
  bad_calibration: "The calibration data cannot be used", calibration_source: "A calibration text cannot be read", web_text: "The web text cannot be read",
  calibration_too_short: "Too little calibration text", calibration_too_uniform: "The calibration text repeats itself",
  manifest_mismatch: "Files differ from their manifest", bad_task: "An evaluation task cannot be run", missing_extra: "The worker lacks a package",
  task_not_found: "Evaluation task not found", task_data: "The data of an evaluation task is missing", numerical: "Numerical failure",
  insufficient_disk: "The disk is full", output_exists: "The output exists already", output_in_use: "The output is in use",
  output_not_writable: "The output cannot be written", verification_failed: "The result failed its checks", quality_gate: "Quality gate not passed",
  measurement_failed: "A measurement failed", cancelled: "Cancelled", worker_lost: "The worker was lost", timeout: "Time limit exceeded",
  expired_in_queue: "Waited too long in the queue", out_of_memory: "Out of memory", out_of_device_memory: "Too little GPU memory", child_crashed: "The engine crashed", rank_failed: "A process of the job has ended", internal_error: "Internal error",
};

/** @param {string} code of a failed job */
export const failureText = (code) => FAILURE_WORDS[code] || PROBLEM_WORDS[code]?.replace(/\.$/, "") || code.replaceAll("_", " ");

/** @type {Record<string, string>} what people call a field, by its pointer without numbers */
const FIELD_NAMES = {
  "/model": "The model", "/model/ref": "The model", "/model/source": "The model source", "/model/revision": "The revision",
  "/compression/ratio": "The percentage", "/compression/target_params": "The parameter count", "/compression/target_bytes": "The file size",
  "/compression/target": "The runtime", "/compression/method": "The method", "/compression/allocation": "The allocation method",
  "/compression/round_to": "“Round dimensions to”", "/compression/exports": "The file formats", "/compression/device": "The device",
  "/compression/devices": "The number of GPUs",
  "/compression/calibration": "The calibration data", "/compression/calibration/source": "The calibration data",
  "/compression/calibration/text_field": "The field of the text", "/evaluation/text_field": "The field of the text",
  "/compression/calibration/samples": "The number of samples", "/compression/calibration/sequence_length": "The number of tokens per sample",
  "/compression/mask_training": "The training of masks", "/compression/mask_training/max_tokens": "The number of tokens of the training of masks",
  "/compression/mask_training/max_seconds": "The time limit of the training of masks",
  "/compression/recover": "Recovery training", "/compression/recover/loss": "Recovery training",
  "/evaluation": "The evaluation", "/evaluation/perplexity": "The list of evaluation texts", "/evaluation/tasks": "The list of evaluation tasks",
  "/evaluation/task_limit": "The number of examples per task", "/evaluation/prompts": "The list of sample prompts",
  "/evaluation/gate": "The quality gate", "/evaluation/gate/max_perplexity_ratio": "The quality gate",
  "/ratios": "The list of percentages", "/methods": "The list of methods", "/labels": "The labels", "/labels/name": "The name",
  "/prompt": "The prompt", "/max_new_tokens": "The longest answer", "/temperature": "The temperature",
  "/target": "The registry", "query:path": "The directory", "/priority": "The priority", "/name": "The name", "/scope": "The scope", "/url": "The URL", "/files": "The list of files",
};

/** @param {string} message */
const last = (message) => message.match(/-?[\d.]+(?:e[+-]?\d+)?(?=\D*$)/)?.[0] || "the limit";

/** @param {string} message */
const limit = (message) => {
  const number = message.match(/at most (\d+)/)?.[1];
  return number ? `: at most ${number}` : "";
};

/** Pointer without the numbers of list entries. @param {string} pointer */
const place = (pointer) => pointer.replace(/\/\d+(?=\/|$)/g, "");

/** What people call a field, or else what it is part of. @param {string} pointer without numbers @returns {string | undefined} */
function fieldName(pointer) {
  if (FIELD_NAMES[pointer]) return FIELD_NAMES[pointer];
  if (pointer.startsWith("/labels/")) return "The label";
  return pointer.includes("/") ? fieldName(pointer.slice(0, pointer.lastIndexOf("/"))) : undefined;
}

/** A field's error in words. @param {FieldProblem} problem @param {boolean} [named] whether the sentence names the field */
export function problemText(problem, named = false) {
  const field = fieldName(place(problem.pointer));
  const words = FIELD_WORDS[problem.code]?.(problem.message);
  if (words) return `${named ? field || problem.pointer : "This"} ${words}.`;
  const message = sentence(problem.message.replace(/^(Value error|Assertion failed), /, ""));
  return named && field ? `${field}: ${message}` : message;
}

/** The first error of a field or of what is below it. @param {any} error an `ApiError` @param {string[]} pointers @returns {string | undefined} */
export function errorBeside(error, pointers) {
  const problem = (error?.problems || []).find((/** @type {FieldProblem} */ candidate) => pointers.some((pointer) => place(candidate.pointer) === pointer || place(candidate.pointer).startsWith(`${pointer}/`)));
  return problem && problemText(problem);
}

/** @param {string} text */
function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
