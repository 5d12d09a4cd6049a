# PostgreSQL from Debian, with the part of the published image's entry point that infra/compose.yaml uses. Tests start
# the stack with it where no image can be pulled.
ARG BASE
FROM ${BASE}
# hadolint ignore=DL3008
RUN groupadd --gid 999 postgres && \
    useradd --uid 999 --gid 999 --home-dir /var/lib/postgresql postgres && \
    apt-get update && \
    apt-get install -y --no-install-recommends postgresql && \
    rm -rf /var/lib/apt/lists/* /var/lib/postgresql && \
    install --directory --owner 999 --group 999 --mode 700 /var/lib/postgresql /var/lib/postgresql/data && \
    install --directory --mode 1777 /run/postgresql && \
    ln -s /usr/lib/postgresql/*/bin /opt/postgresql
ENV PATH=/opt/postgresql:$PATH
COPY postgres-entrypoint /usr/local/bin/
USER 999:999
ENTRYPOINT ["postgres-entrypoint"]
