// Validates an AsyncAPI document with AsyncAPI's own parser; prints each finding on a line.
const {readFileSync} = require("fs");
const {Parser} = require("@asyncapi/parser");

new Parser().parse(readFileSync(process.argv[2], "utf8")).then(({document, diagnostics}) => {
  const errors = diagnostics.filter((found) => found.severity === 0);
  for (const found of errors) console.log(`${found.path.join(".")}: ${found.message}`);
  process.exit(document && !errors.length ? 0 : 1);
});
