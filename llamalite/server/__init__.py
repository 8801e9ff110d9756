"""An HTTP server that speaks OpenAI's and Anthropic's protocols: the extra `serve`.

pool = ModelPool([ServedModel("demo", path)], ModelOptions())
run(make_app(pool, ServerSettings()), listen("127.0.0.1", 8080))

request → access_log → security → one endpoint → answering → `llamalite.Model` → Server-Sent Events

app, running          the routes; the process: signals, grace, slow connections
settings              what the command line decides
security, access_log  who may ask, and how much; one line a request
models                the models that are served, loaded when they are first asked for
fields, errors        what requests have in common; an exception → status and body
chat, completions, responses, messages, embeddings, native_api, tokens      one file for each group of endpoints
chatting              messages, tools and their choice → a question to the model
answering             a question → the parts of its answer: text, thoughts, calls
delivery              parts → one body or a stream of events, for as long as the client listens
figures, metrics      usage and timings of an answer; Prometheus

Starlette has the routes, uvicorn HTTP, sse-starlette the events, pydantic the types, prometheus-client the figures.
"""
