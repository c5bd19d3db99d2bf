// Prints what AsyncAPI's parser makes of a document, with the problems that it finds: run.js DOCUMENT
import { Parser } from "@asyncapi/parser";
import { readFile } from "node:fs/promises";

const { document, diagnostics } = await new Parser().parse(await readFile(process.argv[2], "utf8"));
console.log(
  JSON.stringify({
    version: document?.version(),
    problems: diagnostics.filter(({ severity }) => severity <= 1),
    channels: document?.channels().all().map((channel) => channel.id()),
    messages: document?.messages().all().map((message) => message.name()),
  }),
);
