"""Retrieval-augmented generation with LangChain, without a language model that costs money.

    python langchain_rag.py bge-small-en-v1.5 "how do heat pumps work?"

It retrieves two of four documents and prints an answer with its source. **No language model is
called**: `answer_from_context` stands in its place and returns the first retrieved sentence. Put a
chat model there, such as `ChatOpenAI`, and the rest stays as it is. Needs `pip install
'bge-runtime[cpu,langchain]'`.
"""

from __future__ import annotations

import sys

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from bge_runtime.integrations.langchain import BgeEmbeddings

DOCUMENTS = [
    Document("A heat pump moves warmth from outside into the house.", metadata={"source": "heat"}),
    Document("Rye is a grain that grows on poor soil.", metadata={"source": "grain"}),
    Document("The tram to the harbour runs every ten minutes.", metadata={"source": "tram"}),
    Document("Snow melts first on roofs with poor insulation.", metadata={"source": "snow"}),
]
PROMPT = ChatPromptTemplate.from_template("Answer from this context only:\n{context}\n\n{question}")


def format_documents(documents: list[Document]) -> str:
    """Return the documents as lines of a prompt, each with its source."""
    return "\n".join(f"[{each.metadata['source']}] {each.page_content}" for each in documents)


def answer_from_context(prompt: PromptValue) -> str:
    """Return the first line of the context, in place of what a language model would write."""
    return prompt.to_string().splitlines()[1]


def build_chain(model_name: str) -> Runnable[str, str]:
    """Return a chain from a question to its answer."""
    store = InMemoryVectorStore(BgeEmbeddings(model_name=model_name))
    store.add_documents(DOCUMENTS)
    retriever = store.as_retriever(search_kwargs={"k": 2})
    inputs = {"context": retriever | format_documents, "question": RunnablePassthrough()}
    return inputs | PROMPT | RunnableLambda(answer_from_context) | StrOutputParser()


if __name__ == "__main__":
    print(build_chain(sys.argv[1]).invoke(sys.argv[2]))
