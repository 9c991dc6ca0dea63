from eomt_deploy.cli import main

main()
