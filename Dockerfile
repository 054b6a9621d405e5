# A server of one model, on a CPU: docker build -t colbert-rag . && docker run -p 127.0.0.1:8000:8000 colbert-rag
# The page "Serving" of the documentation says more, and how to build it for a GPU.

FROM python:3.13-slim AS build
# Without the index for CPUs, pip takes torch's build for CUDA, which is gigabytes larger.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY colbert_rag colbert_rag
RUN python -m venv /opt/colbert-rag \
  && /opt/colbert-rag/bin/pip install --no-cache-dir --constraint constraints.txt \
    --index-url "$TORCH_INDEX" torch \
  && /opt/colbert-rag/bin/pip install --no-cache-dir --constraint constraints.txt \
    '.[offline,qdrant,server]'

FROM python:3.13-slim
# The number, because Kubernetes asks for one that is not root's.
RUN useradd --uid 10001 --create-home colbert && mkdir /data && chown colbert /data
COPY --from=build /opt/colbert-rag /opt/colbert-rag
ENV PATH=/opt/colbert-rag/bin:$PATH HF_HOME=/data/huggingface PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
# Downloaded checkpoints, and an index if there is one.
VOLUME /data
EXPOSE 8000
HEALTHCHECK --start-period=120s --interval=10s --timeout=5s \
  CMD ["python", "-c", "import urllib.request as it; it.urlopen('http://127.0.0.1:8000/ready')"]
# What follows the image's name is added: docker run colbert-rag --model offline-minilm
ENTRYPOINT ["colbert-rag", "serve", "--host", "0.0.0.0"]
