ariadne-codegen
