// @ts-check
/** The form's request as a command, as Python and for curl. */

import { DEFAULT_PRIORITY, START, jobBody, sweepBody } from "./request.js";

/** @typedef {import("./request.js").Form} Form */

/** The same request in three languages. @param {Form} form @param {string} origin URL of the service */
export function requestSnippets(form, origin) {
  const isSweep = form.size === "sweep";
  const body = isSweep ? sweepBody(form) : jobBody(form);
  return [
    { value: "cli", title: "CLI", text: command(form, body, origin) },
    { value: "python", title: "Python", text: python(body, isSweep, origin) },
    { value: "curl", title: "curl", text: curl(body, isSweep ? "/v1/sweeps" : "/v1/jobs", origin) },
  ];
}

/** @param {Form} form @param {any} body @param {string} origin */
function command(form, body, origin) {
  // The command has no option for what a duplicated job may have, and scores a text of its own where none is named.
  const hasOptions = form.base === START.base && (form.evaluate.length > 0 || body.evaluation === null) && hasOneField(body) && (form.size !== "sweep" || form.priority === DEFAULT_PRIORITY);
  if (hasOptions) return lines(form.size === "sweep" ? "intraslice sweeps create" : "intraslice submit", options(form, body, origin));
  if (form.size === "sweep") return curl(body, "/v1/sweeps", origin);
  return `cat > job.json <<'JSON'\n${JSON.stringify(body, null, 2)}\nJSON\nintraslice submit --file job.json --url ${quoted(origin)}`;
}

/** Return whether `--text-field` can express the fields of all texts. @param {any} body */
function hasOneField({ compression, evaluation }) {
  const own = compression.calibration.text_field ?? null;
  return (evaluation === null || (evaluation.text_field ?? null) === own) && !(own && compression.recover);
}

/** Options of the command line; those with the command's own defaults are left out. @param {Form} form @param {any} body @param {string} origin */
function options(form, body, origin) {
  const { compression, evaluation } = body;
  const each = (/** @type {string} */ option, /** @type {string[]} */ values) => values.map((value) => `${option} ${quoted(value)}`).join(" ");
  const given = (/** @type {string} */ option, /** @type {any} */ value) => (value === null || value === undefined || value === "" ? "" : `${option} ${quoted(String(value))}`);
  return [
    quoted(`${form.source}:${form.ref.trim()}${form.revision ? `@${form.revision}` : ""}`),
    form.size === "sweep" ? `--ratios ${form.ratios.join(",")}` : "",
    form.size === "sweep" && form.methods.length > 1 ? `--methods ${form.methods.join(",")}` : `--method ${compression.method}`,
    given("--ratio", form.size === "sweep" ? null : compression.ratio),
    given("--target-params", compression.target_params),
    given("--target-bytes", compression.target_bytes),
    `--target ${form.target}`,
    each("--exports", compression.exports.slice(1)),
    form.allocation === "auto" ? "" : `--allocation ${form.allocation}`,
    given("--round-to", form.round_to),
    each("--calibration", form.texts),
    given("--text-field", compression.calibration.text_field),
    `--samples ${form.samples} --sequence-length ${form.sequence_length}`,
    given("--mask-tokens", compression.mask_training?.max_tokens),
    given("--mask-seconds", compression.mask_training?.max_seconds),
    given("--recover", form.recover),
    ...(evaluation === null ? ["--no-evaluation"] : [
      each("--evaluate", evaluation.perplexity),
      given("--evaluate-tokens", evaluation.max_tokens),
      evaluation.benchmark ? "" : "--no-benchmark",
      each("--tasks", evaluation.tasks),
      given("--limit", evaluation.task_limit),
      given("--max-perplexity-ratio", evaluation.gate?.max_perplexity_ratio),
      ...evaluation.prompts.map((/** @type {string} */ prompt) => `--prompts ${quoted(prompt)}`),
    ]),
    form.label.trim() ? `--label ${quoted(`name=${form.label.trim()}`)}` : "",
    form.priority === DEFAULT_PRIORITY || form.size === "sweep" ? "" : `--priority ${form.priority}`,
    `--url ${quoted(origin)}`,
  ];
}

/** @param {string} program @param {string[]} parts */
const lines = (program, parts) => [program, ...parts.filter(Boolean)].join(" \\\n  ").replace(" \\\n  ", " ");

/** @param {any} body @param {boolean} isSweep @param {string} origin */
function python(body, isSweep, origin) {
  const create = isSweep
    ? `sweep = client.sweeps.create(
        ModelSource.model_validate(${literal(body.model, 8)}),
        ${literal(body.ratios, 8)},
        CompressionSettings.model_validate(${literal(body.compression, 8)}),
        methods=${literal(body.methods ?? null, 8)},`
    : `job = client.jobs.create(
        ModelSource.model_validate(${literal(body.model, 8)}),
        CompressionConfig.model_validate(${literal(body.compression, 8)}),`;
  const evaluation = body.evaluation === null ? "None" : `EvaluationConfig.model_validate(${literal(body.evaluation, 8)})`;
  return `import os
from pathlib import Path

from intraslice_client import Client, ${isSweep ? "CompressionSettings" : "CompressionConfig"}, EvaluationConfig, ModelSource

with Client(${literal(origin)}, os.environ.get("INTRASLICE_API_KEY")) as client:
    ${create}
        evaluation=${evaluation},
        labels=${literal(body.labels, 8)},
        priority=${body.priority},
    )
${isSweep ? "    print(sweep.id)" : `    client.jobs.wait(job.id)\n    client.jobs.download(job.id, Path("compressed"))`}`;
}

/** @param {any} body @param {string} path @param {string} origin */
const curl = (body, path, origin) => `curl -X POST ${quoted(origin + path)} \\
  -H "Authorization: Bearer $INTRASLICE_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d ${quoted(JSON.stringify(body, null, 1).replace(/\n\s*/g, " "), true)}`;

/** A word for a shell, quoted if need be. @param {string} word @param {boolean} [always] */
export const quoted = (word, always = false) => (!always && /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

/** A JSON value as a Python literal. @param {any} value @param {number} [indent] @returns {string} */
export function literal(value, indent = 0) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  const parts = Array.isArray(value) ? value.map((entry) => literal(entry, indent + 4)) : Object.entries(value).map(([name, entry]) => `${JSON.stringify(name)}: ${literal(entry, indent + 4)}`);
  const short = `${open}${parts.join(", ")}${close}`;
  if (short.length + indent < 76 && !short.includes("\n")) return short;
  const space = " ".repeat(indent + 4);
  return `${open}\n${parts.map((part) => `${space}${part},\n`).join("")}${" ".repeat(indent)}${close}`;
}
