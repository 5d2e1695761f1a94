# shellcheck shell=bash disable=SC2034
# What your site is like: fill in each CHANGE-ME once. All jobs of submit.sh read this file.
# Another file can be named in the environment: SITE=/path/of/my_site.sh submit.sh ...

PARTITION=CHANGE-ME         # of jobs without a GPU; `sinfo` lists them. Empty: the site's default
GPU_PARTITION=CHANGE-ME     # of jobs with a GPU
ACCOUNT=CHANGE-ME           # that jobs are charged to; `sacctmgr show associations`. Empty: the default

# Where wsiad is: venv, conda, module or apptainer. Only the lines of the chosen one are read.
ENVIRONMENT=CHANGE-ME
VENV=CHANGE-ME              # venv: its folder, which the nodes see under the same path
CONDA=CHANGE-ME             # conda: the folder of its installation (`conda info --base`)
CONDA_ENVIRONMENT=wsiad
MODULES=(CHANGE-ME)         # module: what `module load` needs so that there is a `wsiad`
IMAGE=CHANGE-ME             # apptainer: the image, see docs/containers.md
IMAGE_OPTIONS=(--nv)        # and its options, such as --bind /data (--nv: GPUs)

SCRATCH=                    # disk of the node to which slides are copied first, such as /scratch/$USER
LOGS=logs                   # folder of the jobs' logs

# Walltime. A training is given --max-minutes: the time limit of its job less RESERVE_MINUTES, in which
# it calibrates and writes its run. Whatever still works SIGNAL_SECONDS before the limit is stopped and
# queued again, and goes on from where it was; at most MOST_REQUEUES times.
RESERVE_MINUTES=30
SIGNAL_SECONDS=300
MOST_REQUEUES=20

# Number of jobs among which the slides are divided, and what sbatch is asked for by each.
TILE_JOBS=20
HEATMAP_JOBS=8
TILE=(--partition="$PARTITION" --cpus-per-task=4 --mem=16G --time=04:00:00)
HEATMAP=(--partition="$GPU_PARTITION" --gres=gpu:1 --cpus-per-task=4 --mem=32G --time=04:00:00)
TRAIN=(--partition="$GPU_PARTITION" --gres=gpu:1 --cpus-per-task=4 --mem=32G --time=12:00:00)
OTHER=(--partition="$PARTITION" --cpus-per-task=2 --mem=16G --time=04:00:00)
# A command with --cluster only looks after the jobs that it starts, until all is done.
CLUSTER=(--partition="$PARTITION" --cpus-per-task=1 --mem=4G --time=1-00:00:00)
