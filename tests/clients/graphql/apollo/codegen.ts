import type { CodegenConfig } from "@graphql-codegen/cli";

const config: CodegenConfig = {
  schema: "contracts/schema.graphql",
  documents: "contracts/operations.graphql",
  generates: { "gql/": { preset: "client", config: { useTypeImports: true } } },
  importExtension: ".js",
};
export default config;
