# One image for every process: workers, migrations, commands. Build: docker build -t switchyard .
FROM python:3.12-slim

WORKDIR /app
# Dependencies first: they change less often than the code.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; o = p['optional-dependencies']; \
      print('\n'.join(p['dependencies'] + o['redis'] + o['rabbitmq'] + o['jobs'] + o['secrets']))" > /tmp/requirements.txt \
 && pip install --no-cache-dir --constraint constraints.txt --requirement /tmp/requirements.txt

COPY . .
RUN pip install --no-cache-dir --no-deps --editable . \
 && useradd --create-home switchyard \
 && install -d -o switchyard var

USER switchyard
ENV PYTHONUNBUFFERED=1 LOG_FORMAT=json
CMD ["switchyard", "worker", "actors", "--processes", "2"]
