// Checks dashboards against Grafana's published types, made into JSON schemas: node validate.mjs NODE_MODULES FILE…
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, ...files] = process.argv.slice(2);
const load = createRequire(`${modules}/x.js`);
const Ajv = load("ajv").default;
const { createGenerator } = load("ts-json-schema-generator");
const types = `${modules}/@grafana/schema/dist/types/raw`;
const ajv = new Ajv({ strict: false, allErrors: true });
const known = new Map();

function check(file, type, value, where) {
  const key = `${file}#${type}`;
  if (!known.has(key)) {
    const path = `${types}/${file}/x/types.gen.d.ts`;
    known.set(key, ajv.compile(createGenerator({ path, type, skipTypeCheck: true }).createSchema(type)));
  }
  const valid = known.get(key);
  return valid(value) ? [] : valid.errors.map((e) => `${where}${e.instancePath}: ${e.message} ${JSON.stringify(e.params)}`);
}

for (const file of files) {
  const dashboard = JSON.parse(readFileSync(file, "utf8"));
  const found = check("dashboard", "Dashboard", dashboard, file);
  for (const panel of dashboard.panels.filter((panel) => panel.type !== "row")) {
    const folder = `composable/${panel.type.replace("-", "")}/panelcfg`;
    found.push(...check(folder, "Options", panel.options, `${file} ${panel.title} options`));
    const custom = panel.fieldConfig.defaults.custom;
    if (custom) found.push(...check(folder, "FieldConfig", custom, `${file} ${panel.title} custom`));
  }
  found.forEach((line) => console.log(line));
  if (found.length) process.exitCode = 1;
}
